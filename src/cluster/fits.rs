//! Whether a lab's nodes can boot their images, found before anything boots.

use crate::error::{Error, Result};
use crate::images::inspect::inspect;
use crate::images::manifest::{CpuLevel, Manifests};
use crate::lab::BootImage;
use crate::lab::accel::Accel;
use crate::lab::spec::{Bytes, LabSpec, MIB, NodeSpec};
use std::collections::BTreeMap;
use std::path::Path;

/// Of what the manifests say: the images are known, and each node has the memory that its image needs.
pub fn check_memory(spec: &LabSpec, manifests: &Manifests) -> Result<()> {
    for node in &spec.nodes {
        let manifest = manifests.get(&node.image);
        let manifest = manifest.map_err(|e| e.at(&spec.file, Some(node.image_line)))?;
        let Some(least) = manifest.memory_mib.map(|mib| mib * MIB) else { continue };
        if node.memory < least {
            let (memory, needed) = (Bytes(node.memory), Bytes(least));
            let message =
                format!("node {}: {} needs {needed}, not {memory}", node.name, node.image);
            return Err(Error::input(message)
                .at(&spec.file, Some(node.memory_line))
                .hint(format!("set `memory` to {needed} or more")));
        }
    }
    Ok(())
}

/// A disk smaller than its image would be cut: the file system in it goes on behind the end.
pub fn check_disks(spec: &LabSpec, images: &BTreeMap<String, BootImage>) -> Result<()> {
    for node in &spec.nodes {
        let (Some(disk), Some(image)) = (node.disk, images.get(&node.image)) else { continue };
        let found = inspect(&image.disk)?;
        check_disk(spec, node, disk, found.virtual_size.unwrap_or(found.bytes))?;
    }
    Ok(())
}

fn check_disk(spec: &LabSpec, node: &NodeSpec, disk: u64, image: u64) -> Result<()> {
    if disk >= image {
        return Ok(());
    }
    let (disk, image) = (Bytes(disk), Bytes(image));
    let message = format!("node {}: disk {disk} is smaller than the image's {image}", node.name);
    Err(Error::input(message)
        .at(&spec.file, Some(node.disk_line))
        .hint("make it larger, or leave `disk` out for the image's own size"))
}

/// A kernel or a C library that was built for a newer processor ends in a panic or in "illegal
/// instruction".
pub fn check_cpus(spec: &LabSpec, manifests: &Manifests, accel: Accel) -> Result<()> {
    let has = match accel {
        // What TCG hides from guests begins with AVX (see `lab::qemu`).
        Accel::Tcg => CpuLevel::V2,
        Accel::Kvm => host_level(Path::new("/proc/cpuinfo")),
    };
    for node in &spec.nodes {
        let manifest = manifests.get(&node.image)?;
        if manifest.cpu > has {
            let message = format!(
                "node {}: {} needs a processor of {}, and guests have {has} here with {accel}",
                node.name, node.image, manifest.cpu
            );
            return Err(Error::host(message)
                .at(&spec.file, Some(node.image_line))
                .hint("use another image, or a host with KVM and a newer processor"));
        }
    }
    Ok(())
}

/// The psABI level of the host's processor, which guests have under KVM.
fn host_level(cpuinfo: &Path) -> CpuLevel {
    level_of(&std::fs::read_to_string(cpuinfo).unwrap_or_default())
}

fn level_of(cpuinfo: &str) -> CpuLevel {
    let flags = cpuinfo.lines().find_map(|line| {
        line.strip_prefix("flags")?.trim_start().strip_prefix(':').map(str::split_whitespace)
    });
    let flags: Vec<&str> = flags.into_iter().flatten().collect();
    let has = |all: &[&str]| all.iter().all(|flag| flags.contains(flag));
    // Linux calls LZCNT `abm`, SSE3 `pni`.
    let levels: [(CpuLevel, &[&str]); 3] = [
        (CpuLevel::V2, &["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"]),
        (CpuLevel::V3, &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"]),
        (CpuLevel::V4, &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]),
    ];
    let reached = levels.iter().take_while(|(_, flags)| has(flags)).last();
    reached.map_or(CpuLevel::V1, |(level, _)| *level)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::images::manifest::Manifest;
    use crate::lab::spec::GIB;

    fn manifests(keys: &str) -> Manifests {
        let text = format!(
            "name = \"tiny\"\ndescription = \"\"\nuser = \"u\"\nformat = \"qcow2\"\n{keys}\n\
             [pin]\nurl = \"http://h/x\"\nsha256 = \"{}\"\n",
            "0".repeat(64)
        );
        Manifests::new(vec![Manifest::parse(Path::new("images/tiny.toml"), text).unwrap()])
    }

    fn spec(memory: &str, disk: &str) -> LabSpec {
        let text = format!(
            "name = \"x\"\n[networks.m]\nsubnet = \"10.0.0.0/24\"\noutside = \"10.0.0.1\"\n\
             [nodes.a]\nimage = \"tiny\"\nmemory = \"{memory}\"\ncpus = 1\ndisk = \"{disk}\"\n\
             [[nodes.a.nics]]\nnetwork = \"m\"\naddress = \"10.0.0.2\"\n"
        );
        LabSpec::parse(Path::new("x.toml"), &text).unwrap()
    }

    #[test]
    fn too_little_memory_is_refused_with_its_line() {
        let all = manifests("memory_mib = 128");
        check_memory(&spec("128MiB", "2GiB"), &all).unwrap();
        let e = check_memory(&spec("64MiB", "2GiB"), &all).unwrap_err();
        assert_eq!(e.to_string(), "x.toml:7: node a: tiny needs 128 MiB, not 64 MiB");
        assert_eq!(e.kind(), Kind::Input);
    }

    #[test]
    fn a_disk_below_its_image_is_refused_with_its_line() {
        let (spec, small) = (spec("128MiB", "2GiB"), spec("128MiB", "512MiB"));
        let node = &spec.nodes[0];
        check_disk(&spec, node, 2 * GIB, 2 * GIB).unwrap();
        let e = check_disk(&spec, node, 2 * GIB, 20 * GIB).unwrap_err();
        let wanted = "x.toml:9: node a: disk 2 GiB is smaller than the image's 20 GiB";
        assert_eq!(e.to_string(), wanted);
        let plain = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/images/qcow2/plain.qcow2");
        let mut image = std::fs::read(plain).unwrap();
        image[24..32].copy_from_slice(&GIB.to_be_bytes());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("one-gib.qcow2");
        std::fs::write(&file, image).unwrap();
        let disk = BootImage { disk: file, kernel: None, initrd: None, append: String::new() };
        let images = BTreeMap::from([("tiny".to_owned(), disk)]);
        check_disks(&spec, &images).unwrap();
        assert!(check_disks(&small, &images).is_err());
    }

    #[test]
    fn an_image_for_a_newer_processor_is_refused() {
        let spec = spec("128MiB", "2GiB");
        check_cpus(&spec, &manifests("cpu = \"x86-64-v2\""), Accel::Tcg).unwrap();
        let e = check_cpus(&spec, &manifests("cpu = \"x86-64-v3\""), Accel::Tcg).unwrap_err();
        assert!(e.to_string().contains("needs a processor of x86-64-v3"), "{e}");
        assert_eq!(e.kind(), Kind::Host);
    }

    #[test]
    fn the_level_of_a_processor_follows_its_flags() {
        let v2 = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3";
        let v3 = format!("{v2} avx avx2 bmi1 bmi2 f16c fma abm movbe xsave");
        let level = |flags: &str| level_of(&format!("processor : 0\nflags\t\t: fpu {flags}\n"));
        assert_eq!(level(""), CpuLevel::V1);
        assert_eq!(level(v2), CpuLevel::V2);
        assert_eq!(level(&v3), CpuLevel::V3);
        assert_eq!(level(&v3.replace("pni", "")), CpuLevel::V1);
        assert_eq!(
            level(&format!("{v3} avx512f avx512bw avx512cd avx512dq avx512vl")),
            CpuLevel::V4
        );
    }
}
