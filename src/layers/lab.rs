//! What made a lab before any step is applied to it: the machines, the networks, what the nodes
//! boot, and who runs them. Neither the lab file's name nor its comments; no host path, no secret.

use super::inputs::Inputs;
use crate::engine::canonical::digest;
use crate::error::{Error, Result};
use crate::lab::accel::Accel;
use crate::lab::keys::SshKey;
use crate::lab::qemu::{self, Boot, Disk, DiskFormat, Machine, NicArgs};
use crate::lab::seed::Seed;
use crate::lab::spec::{Bytes, LabSpec, NetworkSpec, NodeSpec};
use std::path::Path;

/// Raised when layers are kept in another way than before.
const FORMAT: &str = "1";

/// What a node boots, by its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name that its content gives it in the store: a digest, or a key of what built it.
    pub content: String,
    /// Whether its kernel is loaded directly, with this command line.
    pub append: Option<String>,
}

/// The host's part in a lab.
#[derive(Clone, Debug)]
pub struct Host {
    /// Major, minor, micro.
    pub qemu: (u32, u32, u32),
    pub accel: Accel,
    /// The processor's model and flags, which guests see under KVM: see [`processor`].
    pub processor: (String, String),
}

impl Host {
    pub fn new(qemu: (u32, u32, u32), accel: Accel) -> Host {
        Host { qemu, accel, processor: processor(Path::new("/")) }
    }
}

/// Model and sorted flags of the first processor. `root` is `/`, or a test's.
fn processor(root: &Path) -> (String, String) {
    let text = std::fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let line = |name: &str| {
        let value = text.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_prefix(':'));
        value.unwrap_or_default().trim().to_owned()
    };
    let flags = line("flags");
    let mut flags: Vec<&str> = flags.split_whitespace().collect();
    flags.sort_unstable();
    (line("model name"), flags.join(" "))
}

/// The inputs of a lab whose nodes have booted. `image` is asked for every node's image.
pub fn inputs(
    spec: &LabSpec,
    host: &Host,
    image: impl Fn(&str) -> Option<Image>,
) -> Result<Inputs> {
    let mut inputs = Inputs::default();
    inputs.set("format of layers", FORMAT);
    let (major, minor, micro) = host.qemu;
    inputs.set("QEMU", format!("{major}.{minor}.{micro}"));
    inputs.set("accelerator", host.accel.to_string());
    for (option, value) in qemu::base(host.accel) {
        inputs.set(format!("QEMU {option}"), value);
    }
    if host.accel == Accel::Kvm {
        inputs.set("host processor", &host.processor.0);
        inputs.set("host processor's flags", digest(&host.processor.1));
    }
    for network in &spec.networks {
        inputs.set(format!("network {}", network.name), network_text(network));
    }
    for node in &spec.nodes {
        let image = image(&node.image).ok_or_else(|| {
            Error::internal(format!("the image {} was not brought in", node.image))
        })?;
        inputs.set(format!("image {}", node.image), &image.content);
        if let Some(append) = &image.append {
            inputs.set(format!("image {}: kernel command line", node.image), append);
        }
        of_node(&mut inputs, spec, node, host, &image)?;
    }
    Ok(inputs)
}

fn network_text(network: &NetworkSpec) -> String {
    let mut text = network.subnet.to_string();
    if let Some(leg) = network.outside {
        text += &format!(", outside {leg}");
    }
    if network.ntp {
        text += ", ntp";
    }
    if let Some(mtu) = network.mtu {
        text += &format!(", mtu {mtu}");
    }
    text
}

fn of_node(
    inputs: &mut Inputs,
    spec: &LabSpec,
    node: &NodeSpec,
    host: &Host,
    image: &Image,
) -> Result<()> {
    let mut set =
        |what: &str, value: String| inputs.set(format!("node {}: {what}", node.name), value);
    set("image", node.image.clone());
    set("memory", Bytes(node.memory).to_string());
    set("cpus", node.cpus.to_string());
    set("disk", node.disk.map_or("the image's".into(), |d| Bytes(d).to_string()));
    set("roles", node.roles.join(" "));
    for nic in &node.nics {
        let address = nic.address.map_or("no address".into(), |a| a.to_string());
        set(&format!("NIC on {}", nic.network), format!("{}, {address}", nic.mac));
    }
    // These two catch what the values above do not name: devices, their order, what is said to
    // cloud-init.
    set("machine", digest(machine(spec, node, host, image)));
    let key = SshKey::symbolic();
    let seed = Seed::of(spec, node, &key, &key).volume()?;
    set("seed", digest(seed));
    Ok(())
}

/// QEMU's arguments with names in the place of the host's files.
fn machine(spec: &LabSpec, node: &NodeSpec, host: &Host, image: &Image) -> String {
    let mtu = |network: &str| spec.network(network).and_then(|n| n.mtu);
    let disk = |file: &str, format, read_only| Disk { file: file.into(), format, read_only };
    let boot = match &image.append {
        Some(append) => Boot::Kernel {
            kernel: "kernel".into(),
            initrd: Some("initrd".into()),
            append: append.clone(),
        },
        None => Boot::Disk,
    };
    let machine = Machine {
        name: node.name.clone(),
        accel: host.accel,
        cpus: node.cpus,
        memory: node.memory,
        boot,
        disks: vec![disk("disk", DiskFormat::Qcow2, false), disk("seed", DiskFormat::Raw, true)],
        nics: node.nics.iter().map(|n| NicArgs { mac: n.mac, mtu: mtu(&n.network) }).collect(),
        // What the host's QEMU was built with is seen by no guest.
        sandbox: false,
    };
    let arguments = machine.arguments();
    arguments.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn host() -> Host {
        let processor = ("a model".into(), "fpu sse".into());
        Host { qemu: (10, 0, 2), accel: Accel::Tcg, processor }
    }

    fn image(name: &str) -> Option<Image> {
        let (content, append) = (format!("sha256/{name}"), Some("quiet".into()));
        Some(Image { content, append })
    }

    pub fn two_node(change: impl Fn(String) -> String) -> LabSpec {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(root.join("vmtests/labs/two-node.toml")).unwrap();
        LabSpec::parse(Path::new("x.toml"), &change(text)).unwrap()
    }

    pub fn of(spec: &LabSpec) -> Inputs {
        inputs(spec, &host(), image).unwrap()
    }

    #[test]
    fn comments_and_the_file_s_name_are_no_inputs() {
        let spec = two_node(|t| t);
        let mut other = two_node(|t| format!("# words\n\n{t}# more\n"));
        other.file = "elsewhere/y.toml".into();
        assert_eq!(of(&spec), of(&other));
    }

    #[test]
    fn every_value_of_the_lab_is_an_input_and_is_told_by_its_name() {
        let before = of(&two_node(|t| t));
        let cases = [
            ("\"6GiB\"", "\"5GiB\"", "node openstack1: memory: 6 GiB -> 5 GiB"),
            ("cpus = 2", "cpus = 1", "node openstack1: cpus: 2 -> 1"),
            ("\"20GiB\"", "\"21GiB\"", "node openstack1: disk: 20 GiB -> 21 GiB"),
            (
                "103.1\"",
                "103.9\"",
                "network management: 192.168.103.0/24, outside 192.168.103.1, \
                ntp -> 192.168.103.0/24, outside 192.168.103.9, ntp",
            ),
            ("[\"compute\"]", "[\"network\"]", "node openstack2: roles: compute -> network"),
            ("103.12", "103.13", "node openstack2: seed: changed"),
        ];
        for (from, to, said) in cases {
            let after = of(&two_node(|t| {
                assert!(t.contains(from), "{from}");
                t.replacen(from, to, 1)
            }));
            let changes = after.changes_since(&before);
            assert!(changes.iter().any(|c| c == said), "{said}: {changes:?}");
        }
    }

    #[test]
    fn another_qemu_accelerator_processor_or_image_is_another_input() {
        let spec = two_node(|t| t);
        let before = of(&spec);
        let newer = Host { qemu: (10, 0, 3), ..host() };
        let changes = inputs(&spec, &newer, image).unwrap().changes_since(&before);
        assert_eq!(changes, ["QEMU: 10.0.2 -> 10.0.3"]);
        // Under TCG no guest sees the host's processor.
        let moved = Host { processor: ("another".into(), String::new()), ..host() };
        assert_eq!(inputs(&spec, &moved, image).unwrap(), before);
        let kvm = |h: Host| inputs(&spec, &Host { accel: Accel::Kvm, ..h }, image).unwrap();
        assert_ne!(kvm(host()), before);
        assert_eq!(
            kvm(moved).changes_since(&kvm(host())),
            ["host processor: a model -> another", "host processor's flags: changed"]
        );
        let rebuilt = |name: &str| Some(Image { content: "sha256/new".into(), ..image(name)? });
        let changes = inputs(&spec, &host(), rebuilt).unwrap().changes_since(&before);
        assert_eq!(changes, ["image debian-13-node: sha256/debian-13-node -> sha256/new"]);
    }

    #[test]
    fn the_processor_is_read_with_its_flags_in_order() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("proc")).unwrap();
        let text = "processor\t: 0\nmodel name\t: A B\nflags\t\t: sse fpu\n\nmodel name\t: C\n";
        std::fs::write(root.path().join("proc/cpuinfo"), text).unwrap();
        assert_eq!(processor(root.path()), ("A B".into(), "fpu sse".into()));
    }
}
