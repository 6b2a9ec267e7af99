//! Embeds the manifests, labs and guest files, so that an installed binary needs no source tree.
//!
//! Everything under the folders below becomes one `(path, contents)` table, read by
//! `src/cli/root.rs`. Paths are relative to the root of the repository, sorted.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

const FOLDERS: [&str; 2] = ["images", "vmtests/labs"];

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut files = Vec::new();
    for folder in FOLDERS {
        println!("cargo::rerun-if-changed={folder}");
        walk(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut table = String::from("pub static FILES: &[(&str, &[u8])] = &[\n");
    for file in &files {
        let name = file.strip_prefix(&root).expect("walked from the root");
        // Not the path of today: a checkout may be moved, and what was built moves with it.
        let here = format!("concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/\", {name:?})");
        writeln!(table, "    ({name:?}, include_bytes!({here})),").expect("to a String");
    }
    table.push_str("];\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("embedded.rs"), table)
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { walk(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
