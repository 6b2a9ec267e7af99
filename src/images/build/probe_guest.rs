//! The recipe `probe-guest`: a guest of a few megabytes that boots in seconds under an emulator.
//!
//! Debian's cloud kernel, busybox and dropbear come as packages and are only unpacked. The guest is
//! one initramfs, not compressed (memory is copied faster than any emulated processor unpacks it),
//! behind a boot sector of our own.

use super::apt::Apt;
use super::{Job, cpio::Archive, elf, linux};
use crate::error::{Context, Error, Kind, Result};
use crate::host::tool::Tool;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub suite: String,
    pub architecture: String,
    /// A metapackage whose only dependency is the kernel.
    pub kernel: String,
    pub packages: Vec<String>,
    /// In the order in which they are loaded.
    pub modules: Vec<String>,
    /// The kernel's command line; `cmdline` beside the image.
    pub cmdline: String,
}

/// Programs of the packages, and where they go. Their libraries follow them.
const PROGRAMS: [(&str, &str, u32); 4] = [
    // Set-uid for `su` and `ping`: busybox gives it up for everything else.
    ("usr/bin/busybox", "bin/busybox", 0o4755),
    ("usr/sbin/dropbear", "usr/sbin/dropbear", 0o755),
    ("usr/bin/dropbearkey", "usr/bin/dropbearkey", 0o755),
    ("usr/bin/dropbearconvert", "usr/bin/dropbearconvert", 0o755),
];

/// Our own files of `images/probe-guest/`, and where they go.
const FILES: [(&str, &str, u32); 10] = [
    ("boot", "etc/boot", 0o755),
    ("guest.sh", "etc/guest.sh", 0o644),
    ("lease", "etc/lease", 0o755),
    ("stop", "etc/stop", 0o755),
    ("inittab", "etc/inittab", 0o644),
    ("passwd", "etc/passwd", 0o644),
    ("group", "etc/group", 0o644),
    ("os-release", "etc/os-release", 0o644),
    ("power", "etc/acpi/PWRF/00000080", 0o755),
    ("sudo", "usr/bin/sudo", 0o755),
];

const DIRECTORIES: [(&str, u32); 26] = [
    ("bin", 0o755),
    ("sbin", 0o755),
    ("lib", 0o755),
    ("lib/modules", 0o755),
    ("lib64", 0o755),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("usr/lib", 0o755),
    ("etc", 0o755),
    ("etc/dropbear", 0o700),
    ("etc/acpi", 0o755),
    ("etc/acpi/PWRF", 0o755),
    ("dev", 0o755),
    ("proc", 0o755),
    ("sys", 0o755),
    ("run", 0o755),
    ("mnt", 0o755),
    ("tmp", 0o1777),
    ("root", 0o700),
    ("home", 0o755),
    ("home/cirros", 0o755),
    ("home/cirros/.ssh", 0o700),
    ("var", 0o755),
    ("var/log", 0o755),
    ("var/run", 0o755),
];

/// The applets that are expected below /sbin by their callers.
const SBIN: [&str; 3] = ["init", "reboot", "poweroff"];

pub(super) async fn build(recipe: &Recipe, files: &Path, job: &Job<'_>, out: &Path) -> Result<()> {
    let work = tempfile::Builder::new()
        .prefix("build-")
        .tempdir_in(out)
        .doing(Kind::Host, || "no folder could be made to build in".into())
        .map_err(|e| e.at(out, None))?;
    let step = |n: u64| job.step(n, 6);
    step(0);
    let apt =
        Apt::open(work.path(), &job.mirrors, &recipe.suite, &recipe.architecture, &job.log).await?;
    step(1);
    let kernel = apt.depends(&recipe.kernel).await?;
    if kernel.is_empty() {
        return Err(Error::image(format!("`{}` depends on no kernel", recipe.kernel)));
    }
    apt.download(&kernel).await?;
    step(2);
    apt.download_with_dependencies(&recipe.packages).await?;
    step(3);
    let tree = work.path().join("tree");
    apt.unpack(&tree).await?;
    step(4);
    let vmlinuz = kernel_of(&tree)?;
    let initrd = initramfs(recipe, files, &tree, job).await?;
    step(5);
    // So that the guest does not take its own disk for a seed drive.
    let cmdline = format!("{} probe.boot=disk", recipe.cmdline);
    let disk = linux::boot_disk(&vmlinuz, &initrd, &cmdline)?;
    let raw = work.path().join("disk.raw");
    for (file, bytes) in [
        (raw.clone(), &disk[..]),
        (out.join("vmlinuz"), &vmlinuz),
        (out.join("initrd"), &initrd),
        (out.join("cmdline"), recipe.cmdline.as_bytes()),
    ] {
        fs::write(&file, bytes)
            .doing(Kind::Host, || "the image cannot be written".into())
            .map_err(|e| e.at(&file, None))?;
    }
    job.to_qcow2(&raw, &out.join("disk.qcow2")).await?;
    step(6);
    Ok(())
}

/// The one kernel in the tree.
fn kernel_of(tree: &Path) -> Result<Vec<u8>> {
    let boot = tree.join("boot");
    let is_kernel = |p: &PathBuf| {
        p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("vmlinuz-"))
    };
    let found = fs::read_dir(&boot)
        .ok()
        .and_then(|d| d.flatten().map(|e| e.path()).find(is_kernel))
        .ok_or_else(|| Error::image("the kernel's package holds no vmlinuz").at(&boot, None))?;
    read(&found)
}

async fn initramfs(recipe: &Recipe, files: &Path, tree: &Path, job: &Job<'_>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for (path, mode) in DIRECTORIES {
        archive.directory(path, mode);
    }
    // The kernel gives these to init before anything is mounted.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);

    let mut libraries = BTreeMap::new();
    for (from, to, mode) in PROGRAMS {
        let program = read(&tree.join(from))?;
        follow(tree, &program, &mut libraries)?;
        archive.file(to, mode, &program);
    }
    for (to, library) in &libraries {
        archive.file(to, 0o755, library);
    }
    for (from, to, mode) in FILES {
        archive.file(to, mode, &read(&files.join(from))?);
    }

    let busybox = tree.join("usr/bin/busybox");
    let applets = Tool::new(&busybox).arg("--list").log(&job.log).output().await?;
    for applet in applets.lines().filter(|a| *a != "busybox") {
        archive.link(&format!("bin/{applet}"), "/bin/busybox");
    }
    for applet in SBIN {
        archive.link(&format!("sbin/{applet}"), "/bin/busybox");
    }
    archive.link("init", "/bin/busybox");

    let modules = modules_of(&tree.join("usr/lib/modules"));
    for name in &recipe.modules {
        let packed = modules.get(name).ok_or_else(|| {
            Error::image(format!("the kernel's package has no module `{name}`"))
                .hint("the recipe's list of modules does not fit this kernel")
        })?;
        let plain = tree.join(format!("{name}.ko"));
        let to = fs::File::create(&plain).doing(Kind::Host, || format!("module {name}"))?;
        // The packages' own busybox: so no other unpacker is needed here.
        Tool::new(&busybox).arg("xzcat").arg(packed).log(&job.log).output_to(to).await?;
        let mut module = without_signature(&read(&plain)?).to_vec();
        // Types for BPF programs, of which the guest has none: to read those of a module the kernel
        // reads its own first, which are megabytes.
        elf::empty_section(&mut module, ".BTF");
        archive.file(&format!("lib/modules/{name}.ko"), 0o644, &module);
    }
    Ok(archive.finish())
}

/// Adds the libraries that `program` needs, and those that they need, by their place in the guest.
fn follow(tree: &Path, program: &[u8], found: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let needs = elf::needs(program)
        .ok_or_else(|| Error::image("a program of the packages is no 64-bit ELF file"))?;
    if let Some(loader) = needs.interpreter {
        let place = loader.trim_start_matches('/').to_owned();
        if let Entry::Vacant(slot) = found.entry(place) {
            let name = slot.key().rsplit('/').next().unwrap_or_default().to_owned();
            slot.insert(library(tree, &name)?);
        }
    }
    for name in needs.libraries {
        let place = format!("usr/lib/{name}");
        let is_loader = found.keys().any(|k| k.ends_with(&format!("/{name}")));
        if !is_loader {
            let bytes = library(tree, &name)?;
            found.insert(place, bytes.clone());
            follow(tree, &bytes, found)?;
        }
    }
    Ok(())
}

fn library(tree: &Path, name: &str) -> Result<Vec<u8>> {
    ["usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib"]
        .iter()
        .map(|dir| tree.join(dir).join(name))
        .find(|p| p.exists())
        .ok_or_else(|| Error::image(format!("no package brings the library `{name}`")))
        .and_then(|p| read(&p))
}

/// Every compressed module below `dir`, by its name.
fn modules_of(dir: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                dirs.push(path);
            } else if let Some(name) =
                entry.file_name().to_str().and_then(|n| n.strip_suffix(".ko.xz"))
            {
                found.insert(name.to_owned(), path);
            }
        }
    }
    found
}

const SIGNATURE: &[u8] = b"~Module signature appended~\n";

/// A module without the signature at its end: the kernel does not ask for it, and to verify one
/// costs an emulated processor tenths of a second.
fn without_signature(module: &[u8]) -> &[u8] {
    let Some(signed) = module.strip_suffix(SIGNATURE) else { return module };
    // struct module_signature ends with the big-endian size of the signature before it.
    let Some(size) = signed.last_chunk::<4>().map(|s| u32::from_be_bytes(*s) as usize) else {
        return module;
    };
    signed.len().checked_sub(12 + size).map_or(module, |end| &signed[..end])
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path)
        .doing(Kind::Image, || "a file of the guest cannot be read".into())
        .map_err(|e| e.at(path, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_signature_is_cut_off_and_nothing_else() {
        let mut signed = b"module".to_vec();
        signed.extend_from_slice(b"sign");
        signed.extend_from_slice(&[0; 8]);
        signed.extend_from_slice(&4u32.to_be_bytes());
        signed.extend_from_slice(SIGNATURE);
        assert_eq!(without_signature(&signed), b"module");
        assert_eq!(without_signature(b"module"), b"module");
        let mut broken = 999u32.to_be_bytes().to_vec();
        broken.extend_from_slice(SIGNATURE);
        assert_eq!(without_signature(&broken), &broken[..]);
    }

    #[test]
    fn the_library_of_a_program_is_found_with_what_it_needs_itself() {
        let dir = tempfile::tempdir().unwrap();
        let e = follow(dir.path(), b"#!/bin/sh", &mut BTreeMap::new()).unwrap_err();
        assert!(e.message().contains("ELF"), "{e}");
        let program = fs::read(std::env::current_exe().unwrap()).unwrap();
        let e = follow(dir.path(), &program, &mut BTreeMap::new()).unwrap_err();
        assert!(e.message().contains("no package brings"), "{e}");
    }

    #[test]
    fn every_file_of_the_guest_has_a_folder_and_is_here() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/probe-guest");
        for (from, to, _) in FILES {
            assert!(here.join(from).is_file(), "{from}");
            let parent = Path::new(to).parent().unwrap().to_str().unwrap();
            assert!(DIRECTORIES.iter().any(|(d, _)| *d == parent), "{to}");
        }
        let mut seen = vec![""];
        for (dir, _) in DIRECTORIES {
            let parent = Path::new(dir).parent().unwrap().to_str().unwrap();
            assert!(seen.contains(&parent), "{dir} comes after its parent");
            seen.push(dir);
        }
    }
}
