//! What a machine's memory can be restored by: the same QEMU, accelerator and processor.

use crate::error::{Error, Result};
use crate::lab::accel::Accel;
use crate::lab::disk::Chain;
use crate::lab::hypervisor::Hypervisor;
use crate::lab::qemu::{self, Boot, Machine};
use crate::lab::spec::{LabSpec, NodeSpec};
use crate::lab::{BootImage, LabOptions};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Where a checkpoint was made. Also what a key of one must be made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// QEMU's version with its packager's: `10.0.2 (Debian 1:10.0.2+ds-2)`.
    pub qemu: String,
    /// `KVM` or `TCG`.
    pub accelerator: String,
    /// QEMU's options for machine and processor.
    pub machine: String,
    pub processor: String,
    /// With KVM the guest sees the host's processor. QEMU's own, under TCG, is the same everywhere.
    pub host: Option<HostProcessor>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostProcessor {
    /// Vendor, family, model, stepping and name, as /proc/cpuinfo has them.
    pub model: String,
    pub flags: Vec<String>,
}

const NEXT: &str = "make a new checkpoint here: start the lab without this one";

impl Platform {
    /// This host with this QEMU.
    pub fn here(hypervisor: &Hypervisor, accel: Accel) -> Result<Platform> {
        let base = qemu::base(accel);
        let option = |name| {
            let found = base.iter().find(|(option, _)| *option == name);
            found.map_or_else(String::new, |(_, value)| (*value).to_owned())
        };
        let host = match accel {
            Accel::Kvm => Some(HostProcessor::look(Path::new("/proc/cpuinfo"))?),
            Accel::Tcg => None,
        };
        Ok(Platform {
            qemu: hypervisor.release.clone(),
            accelerator: accel.to_string(),
            machine: option("-machine"),
            processor: option("-cpu"),
            host,
        })
    }

    /// Refuses to restore here what was saved on `self`.
    pub fn check(&self, here: &Platform) -> Result<()> {
        let differ = |what: &str, then: &str, now: &str| {
            let message = format!("the checkpoint was made with {what} {then}, and this is {now}");
            Err(Error::host(message).hint(NEXT))
        };
        if self.qemu != here.qemu {
            return differ("QEMU", &self.qemu, &here.qemu);
        }
        if self.accelerator != here.accelerator {
            return differ("the accelerator", &self.accelerator, &here.accelerator);
        }
        if self.machine != here.machine {
            return differ("the machine", &self.machine, &here.machine);
        }
        if self.processor != here.processor {
            return differ("the processor", &self.processor, &here.processor);
        }
        let (Some(then), Some(now)) = (&self.host, &here.host) else { return Ok(()) };
        if then.model != now.model {
            return differ("the processor", &then.model, &now.model);
        }
        let only = |a: &HostProcessor, b: &HostProcessor| {
            let only = a.flags.iter().filter(|f| !b.flags.contains(f));
            only.take(8).map(String::as_str).collect::<Vec<_>>().join(" ")
        };
        if then.flags != now.flags {
            let message = "the checkpoint was made on a processor with other features";
            return Err(Error::host(message)
                .evidence([
                    format!("only there: {}", only(then, now)),
                    format!("only here: {}", only(now, then)),
                ])
                .hint(NEXT));
        }
        Ok(())
    }
}

impl HostProcessor {
    fn look(cpuinfo: &Path) -> Result<HostProcessor> {
        let text = std::fs::read_to_string(cpuinfo).map_err(|e| {
            Error::host("cannot read which processor this is").at(cpuinfo, None).because(e)
        })?;
        // The first of several equal ones.
        let text = text.split("\n\n").next().unwrap_or_default();
        let value = |name: &str| {
            let line = text.lines().find_map(|l| {
                let (key, value) = l.split_once(':')?;
                (key.trim() == name).then_some(value.trim())
            });
            line.unwrap_or_default()
        };
        let model = ["vendor_id", "cpu family", "model", "stepping", "model name"].map(value);
        let mut flags: Vec<String> = value("flags").split(' ').map(str::to_owned).collect();
        flags.sort_unstable();
        Ok(HostProcessor { model: model.join(" "), flags })
    }
}

impl LabSpec {
    /// What [`hardware`] says of the machine that a node will be.
    pub fn hardware(&self, node: &NodeSpec, image: &BootImage, options: &LabOptions) -> String {
        hardware(&self.machine(node, image, &Chain::new(Path::new(""), 0), options))
    }
}

/// Names all that a guest sees of its machine: the hash of QEMU's arguments without the names of
/// files. A stackproof that builds its machines in another way has another one.
pub fn hardware(machine: &Machine) -> String {
    let mut canonical = Machine { sandbox: false, incoming: None, ..machine.clone() };
    for (i, disk) in canonical.disks.iter_mut().enumerate() {
        disk.file = format!("disk{i}").into();
    }
    if let Boot::Kernel { kernel, initrd, .. } = &mut canonical.boot {
        *kernel = "kernel".into();
        *initrd = initrd.as_ref().map(|_| "initrd".into());
    }
    let mut hash = Sha256::new();
    for argument in canonical.arguments() {
        hash.update(argument.as_encoded_bytes());
        hash.update([0]);
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::qemu::{Disk, DiskFormat, Incoming};

    fn platform() -> Platform {
        Platform {
            qemu: "10.0.2 (Debian 1)".into(),
            accelerator: "KVM".into(),
            machine: "q35".into(),
            processor: "host".into(),
            host: Some(HostProcessor { model: "A 6 1".into(), flags: vec!["avx".into()] }),
        }
    }

    #[test]
    fn each_difference_is_refused_with_both_sides_and_what_to_do() {
        platform().check(&platform()).unwrap();
        let host = |model: &str, flags: &[&str]| {
            let flags = flags.iter().map(|f| f.to_string()).collect();
            Some(HostProcessor { model: model.into(), flags })
        };
        let others = [
            (Platform { qemu: "10.0.3 (Debian 1)".into(), ..platform() }, "10.0.3"),
            (Platform { accelerator: "TCG".into(), ..platform() }, "TCG"),
            (Platform { machine: "pc".into(), ..platform() }, "pc"),
            (Platform { processor: "max".into(), ..platform() }, "max"),
            (Platform { host: host("B 6 1", &["avx"]), ..platform() }, "B 6 1"),
            (Platform { host: host("A 6 1", &["avx", "sse9"]), ..platform() }, "features"),
        ];
        for (here, wanted) in others {
            let error = platform().check(&here).unwrap_err();
            assert!(error.message().contains(wanted), "{error}");
            assert!(error.hint_text().is_some(), "{error}");
        }
    }

    #[test]
    fn the_processor_is_read_from_its_first_entry() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cpuinfo");
        let entry = "vendor_id\t: V\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Fast CPU\n\
            stepping\t: 7\nflags\t\t: sse avx\n";
        std::fs::write(&file, format!("{entry}\n{}", entry.replace("avx", "avx2"))).unwrap();
        let found = HostProcessor::look(&file).unwrap();
        assert_eq!(found.model, "V 6 85 7 Fast CPU");
        assert_eq!(found.flags, ["avx", "sse"]);
        assert!(HostProcessor::look(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn hardware_is_what_the_guest_sees_and_not_where_its_files_are() {
        let machine = Machine {
            name: "a".into(),
            accel: Accel::Tcg,
            cpus: 1,
            memory: 128 << 20,
            boot: Boot::Disk,
            disks: vec![Disk {
                file: "/run/1/disk.0.qcow2".into(),
                format: DiskFormat::Qcow2,
                read_only: false,
            }],
            nics: Vec::new(),
            incoming: None,
            sandbox: true,
        };
        let mut moved =
            Machine { incoming: Some(Incoming::Read), sandbox: false, ..machine.clone() };
        moved.disks[0].file = "/run/2/disk.4.qcow2".into();
        assert_eq!(hardware(&machine), hardware(&moved));
        let more = Machine { memory: 256 << 20, ..machine.clone() };
        assert_ne!(hardware(&machine), hardware(&more));
        let mut frozen = machine.clone();
        frozen.disks[0].read_only = true;
        assert_ne!(hardware(&machine), hardware(&frozen));
    }
}
