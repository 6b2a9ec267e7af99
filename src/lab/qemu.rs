//! QEMU's command line, built and not run: pure functions from what is wanted to arguments.
//!
//! Block devices, NICs and objects are given as JSON, where no comma in a path can begin a new
//! option. Socket names are relative: QEMU runs in the machine's own directory, so neither the
//! length of a socket's path nor odd characters in it matter. No secret is ever an argument.

use super::accel::Accel;
use super::mac::Mac;
use super::spec::MIB;
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The oldest QEMU that takes what we say (`reconnect-ms`).
pub const OLDEST: (u32, u32) = (9, 2);

/// The sockets in a machine's directory. All but [`AGENT_SOCKET`] are listened on by us before
/// QEMU starts, so that nobody has to try again and again.
pub const MONITOR_SOCKET: &str = "qmp.sock";
pub const SERIAL_SOCKET: &str = "serial.sock";
pub const AGENT_SOCKET: &str = "agent.sock";

/// QEMU's name of the port to the guest agent.
pub const AGENT: &str = "agent";

/// The socket of the `index`th NIC.
pub fn nic_socket(index: usize) -> String {
    format!("nic{index}.sock")
}

/// One virtual machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub name: String,
    pub accel: Accel,
    pub cpus: u32,
    /// Bytes, whole MiB.
    pub memory: u64,
    pub boot: Boot,
    /// In the order that the guest sees: the first is /dev/vda.
    pub disks: Vec<Disk>,
    pub nics: Vec<NicArgs>,
    /// Waits for a machine that was saved instead of starting one anew.
    pub incoming: Option<Incoming>,
    /// Whether this QEMU was built with seccomp.
    pub sandbox: bool,
}

/// How the memory of a machine that was saved comes back.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// With the state of its devices: all of it is read.
    Read,
    /// It is there already: the guest sees what is in the file, and what it writes is its own.
    Mapped(MappedMemory),
}

/// A guest's memory in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct MappedMemory {
    pub file: PathBuf,
    /// Of the first byte.
    pub offset: u64,
    /// What the file takes on its disk.
    pub bytes: u64,
}

#[derive(Clone, Debug)]
pub enum Boot {
    /// The BIOS boots the first disk.
    Disk,
    /// QEMU loads the kernel: no BIOS menu, no boot loader.
    Kernel { kernel: PathBuf, initrd: Option<PathBuf>, append: String },
    /// This file in the place of the BIOS.
    Firmware(PathBuf),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    pub file: PathBuf,
    pub format: DiskFormat,
    pub read_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    Qcow2,
    Raw,
}

impl DiskFormat {
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct NicArgs {
    pub mac: Mac,
    pub mtu: Option<u16>,
}

/// No new privileges, no child processes, no changes of its own limits.
pub const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

impl Machine {
    /// The arguments after the program's name. The guest does not run until told to (`cont`), so
    /// that its first byte and its first frame are seen.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut args = Args::default();
        args.opt("-name", format!("guest={},debug-threads=on", self.name));
        args.flag("-nodefaults");
        args.flag("-no-user-config");
        args.opt("-display", "none");
        args.flag("-S");
        if self.sandbox {
            args.opt("-sandbox", SANDBOX);
        }
        for (option, value) in base(self.accel) {
            args.opt(option, value);
        }
        args.opt("-smp", self.cpus.to_string());
        args.opt("-m", format!("{}M", self.memory / MIB));
        args.json("-object", self.memory_backend());
        match &self.boot {
            Boot::Disk => {}
            Boot::Kernel { kernel, initrd, append } => {
                args.opt("-kernel", kernel);
                if let Some(initrd) = initrd {
                    args.opt("-initrd", initrd);
                }
                args.opt("-append", append);
            }
            Boot::Firmware(file) => args.opt("-bios", file),
        }
        for (i, disk) in self.disks.iter().enumerate() {
            args.json("-blockdev", blockdev(&disk_node(i), disk));
            let mut device = json!({"driver": "virtio-blk-pci", "id": format!("disk{i}-dev"),
                "drive": disk_node(i)});
            // A kernel loaded by QEMU takes the first place for itself.
            if let Boot::Disk = self.boot {
                device["bootindex"] = json!(i);
            }
            args.json("-device", device);
        }
        for (i, nic) in self.nics.iter().enumerate() {
            args.json(
                "-netdev",
                json!({"type": "stream", "id": format!("nic{i}"), "server": false,
                       "addr": {"type": "unix", "path": nic_socket(i)}, "reconnect-ms": 200}),
            );
            // No option ROM: nothing boots from the network, and each costs seconds under TCG.
            let mut device = json!({"driver": "virtio-net-pci", "id": format!("nic{i}-dev"),
                "netdev": format!("nic{i}"), "mac": nic.mac.to_string(), "romfile": ""});
            if let Some(mtu) = nic.mtu {
                device["host_mtu"] = json!(mtu);
            }
            args.json("-device", device);
        }
        args.json(
            "-object",
            json!({"qom-type": "rng-random", "id": "random", "filename": "/dev/urandom"}),
        );
        args.json("-device", json!({"driver": "virtio-rng-pci", "rng": "random"}));
        args.opt("-chardev", format!("socket,id=monitor,path={MONITOR_SOCKET},server=off"));
        args.opt("-mon", "chardev=monitor,mode=control");
        args.opt("-chardev", format!("socket,id=serial,path={SERIAL_SOCKET},server=off"));
        args.opt("-serial", "chardev:serial");
        args.opt("-chardev", format!("socket,id={AGENT},path={AGENT_SOCKET},server=on,wait=off"));
        args.json("-device", json!({"driver": "virtio-serial-pci"}));
        args.json(
            "-device",
            json!({"driver": "virtserialport", "chardev": AGENT,
                   "name": "org.qemu.guest_agent.0"}),
        );
        // Memory that the guest frees is given back to the host, and costs nothing in a checkpoint.
        args.json("-device", json!({"driver": "virtio-balloon-pci", "free-page-reporting": true}));
        // Tells the kernel that it was restored: two labs of one checkpoint draw other randomness.
        args.json("-device", json!({"driver": "vmgenid", "guid": "auto"}));
        if self.incoming.is_some() {
            args.opt("-incoming", "defer");
        }
        args.0
    }

    /// Private memory, given back with the process.
    fn memory_backend(&self) -> Value {
        match &self.incoming {
            // The file is never written: not even opened for it.
            Some(Incoming::Mapped(MappedMemory { file, offset, .. })) => {
                json!({"qom-type": "memory-backend-file", "id": "ram", "size": self.memory,
                       "mem-path": file, "offset": offset, "share": false, "readonly": true,
                       "rom": "off"})
            }
            // Anonymous: huge pages without asking.
            Some(Incoming::Read) | None => {
                json!({"qom-type": "memory-backend-ram", "id": "ram", "size": self.memory})
            }
        }
    }
}

/// What TCG emulates at a loss is hidden from guests: with AVX2 and `rep movsb` advertised, glibc and
/// the kernel prefer them, and a page walk of five levels is longer than one of four. Measured on
/// importing nova and neutron: 5.9 s instead of 7.5 s.
const TCG_CPU: &str = "max,la57=off,avx=off,avx2=off,erms=off,fsrm=off";

/// Accelerator, machine and CPU: the probe of the accelerator uses the same as the guests do.
pub fn base(accel: Accel) -> [(&'static str, &'static str); 3] {
    match accel {
        Accel::Kvm => [
            ("-accel", "kvm"),
            ("-cpu", "host"),
            ("-machine", "q35,memory-backend=ram,vmport=off,smm=off,sata=off,smbus=off"),
        ],
        Accel::Tcg => [
            ("-accel", "tcg,thread=multi"),
            ("-cpu", TCG_CPU),
            ("-machine", "q35,memory-backend=ram,vmport=off,smm=off,sata=off,smbus=off"),
        ],
    }
}

/// The name of the block node that the `index`th disk begins with.
pub fn disk_node(index: usize) -> String {
    format!("disk{index}")
}

/// `blockdev-add` of a qcow2 that is to be put on top of another one.
pub fn layer(node: &str, file: &Path) -> Value {
    let disk = Disk { file: file.to_owned(), format: DiskFormat::Qcow2, read_only: false };
    let mut options = blockdev(node, &disk);
    // What lies below is open already, and is given by `blockdev-snapshot`.
    options["backing"] = Value::Null;
    options
}

fn blockdev(node: &str, disk: &Disk) -> Value {
    // The contents live no longer than the lab: nothing is worth a flush.
    let cache = json!({"direct": false, "no-flush": true});
    let discard = if disk.read_only { "ignore" } else { "unmap" };
    json!({
        "driver": disk.format.name(), "node-name": node,
        "read-only": disk.read_only, "discard": discard, "cache": cache,
        "file": {"driver": "file", "filename": disk.file, "read-only": disk.read_only,
                 "discard": discard, "cache": cache},
    })
}

/// `qemu-img create` of an overlay: `base` is never written to. `size` in bytes; None keeps the
/// base's.
pub fn overlay_arguments(base: &Path, overlay: &Path, size: Option<u64>) -> Vec<OsString> {
    let mut args = Args::default();
    args.flag("create");
    args.flag("-q");
    args.opt("-f", "qcow2");
    args.opt("-b", base);
    args.opt("-F", "qcow2");
    args.flag(overlay);
    if let Some(size) = size {
        args.flag(size.to_string());
    }
    args.0
}

/// `qemu-img create` of a layer on top of `below`, a file in the same directory that QEMU may have
/// open: it is not looked at.
pub fn layer_arguments(below: &OsStr, file: &Path, size: u64) -> Vec<OsString> {
    let mut args = Args::default();
    for flag in ["create", "-q", "-u"] {
        args.flag(flag);
    }
    args.opt("-f", "qcow2");
    args.opt("-b", below);
    args.opt("-F", "qcow2");
    args.flag(file);
    args.flag(size.to_string());
    args.0
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, flag: impl Into<OsString>) {
        self.0.push(flag.into());
    }
    fn opt(&mut self, option: &str, value: impl Into<OsString>) {
        self.flag(option);
        self.flag(value);
    }
    fn json(&mut self, option: &str, value: Value) {
        self.opt(option, value.to_string());
    }
}

#[cfg(test)]
mod tests;
