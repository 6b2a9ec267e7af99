//! What made a lab before any step is applied to it: the machines, the networks, what the nodes
//! boot, and who runs them. Neither the lab file's name nor its comments; no host path, no secret.

use super::inputs::Inputs;
use crate::engine::canonical::digest;
use crate::error::{Error, Result};
use crate::lab::checkpoint::{self, Platform};
use crate::lab::keys::SshKey;
use crate::lab::seed::Seed;
use crate::lab::spec::{Bytes, LabSpec, NetworkSpec, NodeSpec};
use crate::lab::{BootImage, LabOptions};

/// What a node boots, by its content.
#[derive(Clone, Debug)]
pub struct Image {
    /// The name that its content gives it in the store: a digest, or a key of what built it.
    pub content: String,
    pub boot: BootImage,
}

/// The inputs of a lab whose nodes have booted on `platform`. `image` is asked for every node's
/// image; of the options nothing counts that no guest sees.
pub fn inputs(
    spec: &LabSpec,
    platform: &Platform,
    options: &LabOptions,
    image: impl Fn(&str) -> Option<Image>,
) -> Result<Inputs> {
    let mut inputs = Inputs::default();
    // A layer that this stackproof cannot read is one with another key.
    inputs.set("format of layers", checkpoint::VERSION.to_string());
    inputs.set("QEMU", &platform.qemu);
    inputs.set("accelerator", &platform.accelerator);
    inputs.set("machine", &platform.machine);
    inputs.set("processor", &platform.processor);
    if let Some(host) = &platform.host {
        inputs.set("host processor", &host.model);
        inputs.set("host processor's flags", digest(host.flags.join(" ")));
    }
    for network in &spec.networks {
        inputs.set(format!("network {}", network.name), network_text(network));
    }
    for node in &spec.nodes {
        let image = image(&node.image).ok_or_else(|| {
            Error::internal(format!("the image {} was not brought in", node.image))
        })?;
        inputs.set(format!("image {}", node.image), &image.content);
        if image.boot.kernel.is_some() {
            inputs.set(format!("image {}: kernel command line", node.image), &image.boot.append);
        }
        of_node(&mut inputs, spec, node)?;
        // This one and the seed catch what no value above names: devices, their order, what is
        // said to cloud-init.
        let hardware = spec.hardware(node, &image.boot, options);
        inputs.set(format!("node {}: hardware", node.name), hardware);
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

fn of_node(inputs: &mut Inputs, spec: &LabSpec, node: &NodeSpec) -> Result<()> {
    let mut set = |what: &str, value: String| {
        inputs.set(format!("node {}: {what}", node.name), value);
    };
    set("image", node.image.clone());
    set("memory", Bytes(node.memory).to_string());
    set("cpus", node.cpus.to_string());
    set("disk", node.disk.map_or("the image's".into(), |d| Bytes(d).to_string()));
    set("roles", node.roles.join(" "));
    for nic in &node.nics {
        let address = nic.address.map_or("no address".into(), |a| a.to_string());
        set(&format!("NIC on {}", nic.network), format!("{}, {address}", nic.mac));
    }
    let key = SshKey::symbolic();
    set("seed", digest(Seed::of(spec, node, &key, &key).volume()?));
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::lab::BOOTS;
    use crate::lab::accel::Accel;
    use crate::lab::checkpoint::HostProcessor;
    use crate::lab::hypervisor::Hypervisor;
    use std::path::Path;

    fn platform(accelerator: &str) -> Platform {
        let host = HostProcessor { model: "a model".into(), flags: vec!["fpu".into()] };
        Platform {
            qemu: "10.0.2 (Debian 1)".into(),
            accelerator: accelerator.into(),
            machine: "q35".into(),
            processor: "max".into(),
            host: (accelerator == "KVM").then_some(host),
        }
    }

    fn options() -> LabOptions {
        let (qemu, img, release) = ("qemu".into(), "qemu-img".into(), "10.0.2".into());
        let hypervisor = Hypervisor { qemu, img, version: (10, 0, 2), release, sandbox: true };
        let (run_root, slots, accel) = ("/somewhere".into(), "/there".into(), Accel::Tcg);
        LabOptions { run_root, slots, hypervisor, accel, boots: BOOTS, keep: false, logs: None }
    }

    fn image(name: &str) -> Option<Image> {
        let boot = BootImage {
            disk: "/store/disk".into(),
            kernel: Some("/store/kernel".into()),
            initrd: None,
            append: "quiet".into(),
        };
        Some(Image { content: format!("sha256/{name}"), boot })
    }

    pub fn two_node(change: impl Fn(String) -> String) -> LabSpec {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(root.join("vmtests/labs/two-node.toml")).unwrap();
        LabSpec::parse(Path::new("x.toml"), &change(text)).unwrap()
    }

    pub fn of(spec: &LabSpec) -> Inputs {
        inputs(spec, &platform("TCG"), &options(), image).unwrap()
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
        let on = |platform: &Platform| inputs(&spec, platform, &options(), image).unwrap();
        let newer = Platform { qemu: "10.0.3 (Debian 1)".into(), ..platform("TCG") };
        assert_eq!(
            on(&newer).changes_since(&before),
            ["QEMU: 10.0.2 (Debian 1) -> 10.0.3 (Debian 1)"]
        );
        let kvm = on(&platform("KVM"));
        assert!(kvm.changes_since(&before).contains(&"accelerator: TCG -> KVM".into()));
        let mut moved = platform("KVM");
        moved.host.as_mut().unwrap().flags.push("avx".into());
        assert_eq!(on(&moved).changes_since(&kvm), ["host processor's flags: changed"]);
        let rebuilt = |name: &str| Some(Image { content: "sha256/new".into(), ..image(name)? });
        let after = inputs(&spec, &platform("TCG"), &options(), rebuilt).unwrap();
        assert_eq!(
            after.changes_since(&before),
            ["image debian-13-node: sha256/debian-13-node -> sha256/new"]
        );
    }

    #[test]
    fn what_no_guest_sees_is_no_input() {
        let spec = two_node(|t| t);
        let mut other = options();
        (other.run_root, other.slots) = ("/elsewhere".into(), "/elsewhere".into());
        other.keep = true;
        other.hypervisor.sandbox = false;
        let moved = |name: &str| {
            let mut image = image(name)?;
            image.boot.disk = "/other/disk".into();
            image.boot.kernel = Some("/other/kernel".into());
            Some(image)
        };
        assert_eq!(inputs(&spec, &platform("TCG"), &other, moved).unwrap(), of(&spec));
    }
}
