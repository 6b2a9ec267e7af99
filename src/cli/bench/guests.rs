//! What the guests of [`super::boot`] are made of: one kernel that all of them can boot, and a
//! userland for each.

use super::peers;
use crate::cli::root::Root;
use crate::cli::session::Work;
use crate::cluster::images;
use crate::error::{Context, Error, Kind, Result};
use crate::host::tool::Tool;
use crate::images::build::Built;
use crate::images::build::apt::Apt;
use crate::images::build::cpio::Archive;
use crate::images::digest::{Algorithm, Hasher};
use crate::images::manifest::Manifest;
use crate::images::store::{self, Store};
use serde::Deserialize;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// The kernel of probe-guest, and the one in its place: Debian's cloud kernel is built without 9p,
/// through which both peers reach their guests.
const CLOUD: &str = "\"linux-image-cloud-amd64\"";
const GENERIC: &str = "\"linux-image-amd64\"";

/// In the store; not `probe-guest`, for which it must not be taken.
const OURS: &str = "bench-guest";
const PEERS: &str = "bench-peers";

/// In the order in which they are loaded. The last two are for virtme-ng alone.
const MODULES: [&str; 6] = ["netfs", "9pnet", "9pnet_virtio", "9p", "virtio_mmio", "overlay"];

/// What autopkgtest expects in its guest beside busybox: Python for the helper that carries a
/// command's input, a `mktemp` with long options, and a shell whose prompt is plain (busybox edits
/// its lines). These are the libraries of the three.
const LIBRARIES: [&str; 4] = ["libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1"];
const LIBRARY_DIR: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Its guest. The shells and the word on the console are autopkgtest-virt-qemu's contract.
const SHELL_INIT: &str = r#"#!/bin/sh
export PATH=/bin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in netfs 9pnet 9pnet_virtio 9p; do insmod /modules/$module.ko; done
for tty in hvc1 ttyS1; do
	setsid sh -c "while :; do dash -i </dev/$tty >/dev/$tty 2>&1; done" &
done
echo "bench login: " >/dev/ttyS0
while :; do sleep 3600; done
"#;

/// All that virtme-ng wants of udev, in less time: the links to its ports.
const UDEVD: &str = r#"#!/bin/sh
mkdir -p /dev/virtio-ports
for port in /sys/class/virtio-ports/*; do
	read -r name <"$port/name" && ln -s "/dev/${port##*/}" "/dev/virtio-ports/$name"
done
"#;

/// What virtme-ng lays its overlays and mounts on.
const ROOT_DIRS: [&str; 18] = [
    "bin", "boot", "dev", "etc", "home", "mnt", "opt", "proc", "root", "run", "sbin", "srv", "sys",
    "tmp", "usr/bin", "usr/lib", "var/log", "var/tmp",
];

/// What the peers boot.
pub struct Peers {
    /// The kernel's version.
    pub release: String,
    /// The root for virtme-ng, with the kernel in `boot/`.
    pub root: PathBuf,
    /// The initramfs for autopkgtest-virt-qemu.
    pub shell: PathBuf,
    _dir: tempfile::TempDir,
}

impl Peers {
    pub fn kernel(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }
}

/// probe-guest with the generic kernel, built unless it is in the store.
pub async fn ours(work: &Work, store: &Store, root: &Root) -> Result<Built> {
    let manifest = manifest(root)?;
    images::build(work, store, &manifest).await
}

fn manifest(root: &Root) -> Result<Manifest> {
    let path = root.images().join("probe-guest.toml");
    variant(&Manifest::load(&path)?, OURS, CLOUD, GENERIC)
}

/// A recipe that differs from `other` in its name and in `to` instead of `from`.
pub fn variant(other: &Manifest, name: &str, from: &str, to: &str) -> Result<Manifest> {
    let mut variant = Manifest::parse(&other.path, other.text.replacen(from, to, 1))?;
    variant.name = name.into();
    Ok(variant)
}

/// The guests of the peers with the kernel of `ours`, from the store or built.
pub async fn peers(work: &Work, store: &Store, root: &Root, ours: &Built) -> Result<Peers> {
    let kernel = read(&ours.kernel())?;
    let release = release(&kernel)
        .ok_or_else(|| Error::image("it is no Linux kernel").at(ours.kernel(), None))?;
    let mut hash = Hasher::new(Algorithm::Sha256);
    hash.update(&kernel);
    hash.update(include_bytes!("guests.rs"));
    let key = store::derived_key(PEERS, &hash.finish());
    let suite: Suite = manifest(root)?.recipe()?;
    let make = async |out: PathBuf| build(work, store, &suite, &kernel, &release, &out).await;
    let built = store.make_derived(&key, &work.patience(), make).await?;

    let dir = tempfile::tempdir().doing(Kind::Host, || "a temporary folder".into())?;
    let root = dir.path().join("root");
    fs::create_dir(&root).doing(Kind::Host, || "a temporary folder".into())?;
    let unpack = Tool::new("tar").arg("-xf").arg(built.join("root.tar")).arg("-C").arg(&root);
    unpack.run(|_| {}).await?;
    Ok(Peers { release, root, shell: built.join("shell.initrd"), _dir: dir })
}

/// Of the recipe, what is needed here.
#[derive(Deserialize)]
struct Suite {
    suite: String,
    architecture: String,
}

async fn build(
    work: &Work,
    store: &Store,
    suite: &Suite,
    kernel: &[u8],
    release: &str,
    out: &Path,
) -> Result<()> {
    if peers::find("depmod").is_none() {
        return Err(Error::host("`depmod` is not installed: `apt-get install kmod`"));
    }
    let builder = images::builder(work, store);
    let mirrors = builder.mirrors_of(&suite.suite).await?;
    let cannot = || "the guests of the peers cannot be built".to_owned();
    fs::create_dir_all(&builder.logs).doing(Kind::Host, cannot)?;
    let log = builder.logs.join(format!("build-{PEERS}.log"));
    let scratch = tempfile::tempdir_in(out).doing(Kind::Host, cannot)?;
    let apt = Apt::open(scratch.path(), &mirrors, &suite.suite, &suite.architecture, &log).await?;
    let image = format!("linux-image-{release}");
    apt.download(&[image.clone(), "coreutils".into(), "dash".into()]).await.map_err(|e| {
        e.hint(format!("the mirror may have left {image} behind: remove {OURS}-* of the store"))
    })?;
    apt.download_with_dependencies(&["busybox-static".into(), "python3-minimal".into()]).await?;
    let tree = scratch.path().join("tree");
    apt.unpack(&tree).await?;
    if read(&tree.join(format!("boot/vmlinuz-{release}")))? != kernel {
        return Err(Error::image(format!("{image} of the mirror is not the kernel of {OURS}"))
            .hint(format!("remove {OURS}-* of the store, so that it is built anew")));
    }
    compile(&tree, &log).await;

    let busybox = tree.join("usr/bin/busybox");
    let applets = Tool::new(&busybox).arg("--list").log(&log).output().await?;
    let applets: Vec<&str> = applets.lines().filter(|a| *a != "busybox").collect();
    let root = scratch.path().join("root");
    lay_out(&root, &busybox, &applets).doing(Kind::Host, cannot)?;
    let place = root.join(format!("boot/vmlinuz-{release}"));
    fs::write(place, kernel).doing(Kind::Host, cannot)?;
    let mut modules = Vec::new();
    for name in MODULES {
        let packed = module(&tree.join("usr/lib/modules"), name)
            .ok_or_else(|| Error::image(format!("{image} has no module `{name}`")))?;
        let below = packed.strip_prefix(&tree).expect("found in it").with_extension("");
        let plain = root.join(below);
        let dir = plain.parent().expect("it lies in a folder");
        fs::create_dir_all(dir).doing(Kind::Host, cannot)?;
        let to = fs::File::create(&plain).doing(Kind::Host, cannot)?;
        Tool::new(&busybox).arg("xzcat").arg(packed).log(&log).output_to(to).await?;
        modules.push((name, plain));
    }
    Tool::new("depmod").arg("-b").arg(&root).arg(release).log(&log).run(|_| {}).await?;
    let tar = Tool::new("tar").arg("-cf").arg(out.join("root.tar")).arg("-C").arg(&root).arg(".");
    tar.log(&log).run(|_| {}).await?;

    let shell = shell(&tree, &applets, &modules)?;
    fs::write(out.join("shell.initrd"), shell).doing(Kind::Host, cannot)
}

/// Python's library as bytecode, as a Debian system has it. Only for speed: where the package's
/// Python does not run on this host, the guest compiles for itself.
async fn compile(tree: &Path, log: &Path) {
    let libraries = tree.join(LIBRARY_DIR);
    let Ok(library) = python_library(tree) else { return };
    let compile = Tool::new(libraries.join(LOADER)).arg("--library-path").arg(&libraries);
    let compile = compile.arg(tree.join("usr/bin/python3")).args(["-m", "compileall", "-q"]);
    let compile = compile.args(["--invalidation-mode", "unchecked-hash"]).arg(library);
    let _ = compile.env("PYTHONHOME", tree.join("usr")).log(log).run(|_| {}).await;
}

/// `usr/lib/python3.N`.
fn python_library(tree: &Path) -> Result<PathBuf> {
    let found = fs::read_dir(tree.join("usr/lib")).into_iter().flatten().flatten();
    let mut found = found.map(|e| e.path()).filter(|p| {
        p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("python3."))
    });
    found.next().ok_or_else(|| Error::image("python3-minimal brings no library"))
}

fn lay_out(root: &Path, busybox: &Path, applets: &[&str]) -> io::Result<()> {
    for dir in ROOT_DIRS {
        fs::create_dir_all(root.join(dir))?;
    }
    symlink("usr/lib", root.join("lib"))?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    for applet in applets {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    let udevd = root.join("bin/udevd");
    fs::write(&udevd, UDEVD)?;
    fs::set_permissions(&udevd, fs::Permissions::from_mode(0o755))?;
    // Every call of it succeeds and does nothing.
    symlink("true", root.join("bin/udevadm"))?;
    fs::write(root.join("etc/passwd"), "root::0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    fs::write(root.join("etc/hosts"), "")?;
    fs::write(root.join("etc/fstab"), "")
}

/// The initramfs with root's shells.
fn shell(tree: &Path, applets: &[&str], modules: &[(&str, PathBuf)]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "etc", "lib64", "modules", "proc", "root", "run", "sys", "tmp"] {
        archive.directory(dir, 0o755);
    }
    for dir in ["usr", "usr/bin", "usr/lib", LIBRARY_DIR, "var"] {
        archive.directory(dir, 0o755);
    }
    // The kernel gives these to init before anything is mounted.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);
    archive.file("init", 0o755, SHELL_INIT.as_bytes());
    archive.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n");
    for (from, to) in [
        ("usr/bin/busybox", "bin/busybox"),
        ("usr/bin/mktemp", "bin/mktemp"),
        ("usr/bin/dash", "bin/dash"),
        ("usr/bin/python3", "usr/bin/python3"),
    ] {
        archive.file(to, 0o755, &read(&tree.join(from))?);
    }
    for applet in applets.iter().filter(|a| **a != "mktemp") {
        archive.link(&format!("bin/{applet}"), "/bin/busybox");
    }
    for library in LIBRARIES {
        let path = format!("{LIBRARY_DIR}/{library}");
        archive.file(&path, 0o755, &read(&tree.join(&path))?);
    }
    let loader = read(&tree.join(LIBRARY_DIR).join(LOADER))?;
    archive.file(&format!("lib64/{LOADER}"), 0o755, &loader);
    for (name, file) in modules {
        archive.file(&format!("modules/{name}.ko"), 0o644, &read(file)?);
    }
    add(&mut archive, tree, &python_library(tree)?)?;
    Ok(archive.finish())
}

/// Adds a folder of `tree` with all that is in it.
fn add(archive: &mut Archive, tree: &Path, dir: &Path) -> Result<()> {
    let name = |path: &Path| {
        let below = path.strip_prefix(tree).expect("it lies in it");
        below.to_str().map(str::to_owned).ok_or_else(|| Error::image("a name is no UTF-8"))
    };
    archive.directory(&name(dir)?, 0o755);
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .doing(Kind::Host, || "a folder of a package".into())?
        .flatten()
        .map(|e| e.path())
        .collect();
    found.sort();
    for path in found {
        if path.is_dir() {
            add(archive, tree, &path)?;
        } else if path.exists() {
            // Else a link to the configuration of a system that this is none of.
            archive.file(&name(&path)?, 0o644, &read(&path)?);
        }
    }
    Ok(())
}

/// The packed module `name`, somewhere below `dir`.
fn module(dir: &Path, name: &str) -> Option<PathBuf> {
    let wanted = format!("{name}.ko.xz");
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).ok()?.flatten().map(|e| e.path()) {
            if path.is_dir() {
                dirs.push(path);
            } else if path.file_name().is_some_and(|n| n == wanted.as_str()) {
                return Some(path);
            }
        }
    }
    None
}

/// The version in a kernel's setup header (Documentation/arch/x86/boot.rst, `kernel_version`).
fn release(kernel: &[u8]) -> Option<String> {
    if kernel.get(0x202..0x206) != Some(b"HdrS") {
        return None;
    }
    let at = u16::from_le_bytes(*kernel.get(0x20e..)?.first_chunk()?);
    let text = kernel.get(usize::from(at) + 0x200..)?;
    let end = text.iter().position(|b| *b == b' ' || *b == 0)?;
    let version = std::str::from_utf8(&text[..end]).ok()?;
    let sane = |c: char| c.is_ascii_alphanumeric() || ".+-_".contains(c);
    (!version.is_empty() && version.chars().all(sane)).then(|| version.to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let read = fs::read(path).doing(Kind::Image, || "a file of the guests cannot be read".into());
    read.map_err(|e| e.at(path, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(version: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 0x300];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x20u16.to_le_bytes());
        bytes.extend_from_slice(&[0; 0x100]);
        bytes[0x220..0x220 + version.len()].copy_from_slice(version);
        bytes
    }

    #[test]
    fn a_kernels_version_is_read_from_its_header() {
        let of = |version: &[u8]| release(&kernel(version));
        assert_eq!(of(b"6.12.1+deb13-amd64 (a@b) #1").as_deref(), Some("6.12.1+deb13-amd64"));
        assert_eq!(of(b"../../etc x"), None, "it becomes a part of paths");
        assert_eq!(of(b""), None);
        assert_eq!(release(b"MZ"), None);
    }

    #[test]
    fn our_guest_differs_from_probe_guest_in_its_kernel_and_its_name_alone() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/probe-guest.toml");
        let cloud = Manifest::load(&path).unwrap();
        let text = cloud.text.replacen(CLOUD, GENERIC, 1);
        assert_ne!(text, cloud.text);
        let generic = Manifest::parse(&path, text).unwrap();
        assert_eq!(generic.path, cloud.path, "its files are the same");
        let suite: Suite = generic.recipe().unwrap();
        assert_eq!((suite.suite.as_str(), suite.architecture.as_str()), ("trixie", "amd64"));
    }

    #[test]
    fn an_initramfs_takes_a_folder_with_all_that_is_in_it() {
        let tree = tempfile::tempdir().unwrap();
        let dir = tree.path().join("usr/lib/python3.13");
        fs::create_dir_all(dir.join("encodings")).unwrap();
        fs::write(dir.join("encodings/ascii.py"), "pass").unwrap();
        assert_eq!(python_library(tree.path()).unwrap(), dir);
        let mut archive = Archive::default();
        add(&mut archive, tree.path(), &dir).unwrap();
        let text = String::from_utf8_lossy(&archive.finish()).into_owned();
        assert!(text.contains("usr/lib/python3.13/encodings/ascii.py"), "{text}");
    }
}
