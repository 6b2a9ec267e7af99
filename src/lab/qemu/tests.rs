use super::*;

fn machine() -> Machine {
    Machine {
        name: "openstack1".into(),
        accel: Accel::Tcg,
        cpus: 2,
        memory: 6 << 30,
        boot: Boot::Kernel {
            kernel: "/s/vmlinuz".into(),
            initrd: Some("/s/initrd".into()),
            append: "root=/dev/vda rw".into(),
        },
        disks: vec![
            Disk { file: "/r/a,b.qcow2".into(), format: DiskFormat::Qcow2, read_only: false },
            Disk { file: "/r/seed.img".into(), format: DiskFormat::Raw, read_only: true },
        ],
        nics: vec![NicArgs { mac: "52:54:00:AB:00:01".parse().unwrap(), mtu: Some(1400) }],
        incoming: None,
        sandbox: true,
    }
}

/// Pairs of option and value; flags without a value are left out.
fn options(machine: &Machine) -> Vec<(String, String)> {
    let args: Vec<String> =
        machine.arguments().into_iter().map(|a| a.into_string().unwrap()).collect();
    let pair = |w: &[String]| {
        let value = !w[1].starts_with('-') && w[0].starts_with('-');
        value.then(|| (w[0].clone(), w[1].clone()))
    };
    args.windows(2).filter_map(pair).collect()
}

fn values(machine: &Machine, option: &str) -> Vec<String> {
    options(machine).into_iter().filter(|(o, _)| o == option).map(|(_, v)| v).collect()
}

fn objects(machine: &Machine, option: &str) -> Vec<Value> {
    values(machine, option).iter().filter_map(|v| serde_json::from_str(v).ok()).collect()
}

#[test]
fn a_node_is_started_with_exactly_this() {
    let args = machine().arguments();
    let args: Vec<&str> = args.iter().map(|a| a.to_str().unwrap()).collect();
    let wanted = r#"
-name guest=openstack1,debug-threads=on
-nodefaults
-no-user-config
-display none
-S
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-accel tcg,thread=multi
-cpu max,la57=off,avx=off,avx2=off,erms=off,fsrm=off
-machine q35,memory-backend=ram,vmport=off,smm=off,sata=off,smbus=off
-smp 2
-m 6144M
-object {"qom-type":"memory-backend-ram","id":"ram","size":6442450944}
-kernel /s/vmlinuz
-initrd /s/initrd
-append root=/dev/vda rw
-blockdev {"driver":"qcow2","node-name":"disk0","read-only":false,"discard":"unmap","cache":{"direct":false,"no-flush":true},"file":{"driver":"file","filename":"/r/a,b.qcow2","read-only":false,"discard":"unmap","cache":{"direct":false,"no-flush":true}}}
-device {"driver":"virtio-blk-pci","id":"disk0-dev","drive":"disk0"}
-blockdev {"driver":"raw","node-name":"disk1","read-only":true,"discard":"ignore","cache":{"direct":false,"no-flush":true},"file":{"driver":"file","filename":"/r/seed.img","read-only":true,"discard":"ignore","cache":{"direct":false,"no-flush":true}}}
-device {"driver":"virtio-blk-pci","id":"disk1-dev","drive":"disk1"}
-netdev {"type":"stream","id":"nic0","server":false,"addr":{"type":"unix","path":"nic0.sock"},"reconnect-ms":200}
-device {"driver":"virtio-net-pci","id":"nic0-dev","netdev":"nic0","mac":"52:54:00:ab:00:01","romfile":"","host_mtu":1400}
-object {"qom-type":"rng-random","id":"random","filename":"/dev/urandom"}
-device {"driver":"virtio-rng-pci","rng":"random"}
-chardev socket,id=monitor,path=qmp.sock,server=off
-mon chardev=monitor,mode=control
-chardev socket,id=serial,path=serial.sock,server=off
-serial chardev:serial
-chardev socket,id=agent,path=agent.sock,server=on,wait=off
-device {"driver":"virtio-serial-pci"}
-device {"driver":"virtserialport","chardev":"agent","name":"org.qemu.guest_agent.0"}
-device {"driver":"virtio-balloon-pci","free-page-reporting":true}
-device {"driver":"vmgenid","guid":"auto"}
"#;
    let mut lines: Vec<String> = Vec::new();
    for arg in args {
        match lines.last_mut() {
            Some(line) if !arg.starts_with('-') => *line += &format!(" {arg}"),
            _ => lines.push(arg.to_owned()),
        }
    }
    assert_eq!(lines, wanted.trim().lines().collect::<Vec<_>>());
}

#[test]
fn kvm_gets_the_hosts_processor() {
    let machine = Machine { accel: Accel::Kvm, ..machine() };
    assert_eq!(values(&machine, "-accel"), ["kvm"]);
    assert_eq!(values(&machine, "-cpu"), ["host"]);
}

#[test]
fn a_disk_boot_names_no_kernel_and_boots_the_first_disk_first() {
    let machine = Machine { boot: Boot::Disk, ..machine() };
    for option in ["-kernel", "-initrd", "-append", "-bios"] {
        assert!(values(&machine, option).is_empty(), "{option}");
    }
    let devices = objects(&machine, "-device");
    let index = |id: &str| devices.iter().find(|d| d["id"] == id).unwrap()["bootindex"].clone();
    assert_eq!((index("disk0-dev"), index("disk1-dev")), (json!(0), json!(1)));
}

#[test]
fn no_format_is_ever_guessed_and_only_overlays_are_written() {
    for block in objects(&machine(), "-blockdev") {
        assert!(["qcow2", "raw"].contains(&block["driver"].as_str().unwrap()), "{block}");
        assert_eq!(block["file"]["driver"], "file");
        assert_eq!(block["read-only"], block["file"]["read-only"]);
    }
    let args = overlay_arguments("/s/base".as_ref(), "/r/over".as_ref(), Some(1 << 30));
    let wanted = "create -q -f qcow2 -b /s/base -F qcow2 /r/over 1073741824";
    assert_eq!(args.join(" ".as_ref()).to_str(), Some(wanted));
    let args = overlay_arguments("/s/base".as_ref(), "/r/over".as_ref(), None);
    assert_eq!(args.last().unwrap(), "/r/over");
}

#[test]
fn a_layer_lies_on_its_neighbour_by_name_and_is_opened_without_it() {
    let args = layer_arguments("disk.0.qcow2".as_ref(), "/r/disk.1.qcow2".as_ref(), 1 << 30);
    let wanted = "create -q -u -f qcow2 -b disk.0.qcow2 -F qcow2 /r/disk.1.qcow2 1073741824";
    assert_eq!(args.join(" ".as_ref()).to_str(), Some(wanted));
    let options = layer("disk0-1", "/r/disk.1.qcow2".as_ref());
    assert_eq!((&options["node-name"], &options["backing"]), (&json!("disk0-1"), &Value::Null));
    assert_eq!(options["cache"], blockdev("x", &machine().disks[0])["cache"]);
}

#[test]
fn a_machine_that_is_restored_waits_for_its_memory_and_is_otherwise_the_same() {
    let (new, back) = (machine(), Machine { incoming: Some(Incoming::Read), ..machine() });
    let mut arguments = new.arguments();
    arguments.extend(["-incoming".into(), "defer".into()]);
    assert_eq!(back.arguments(), arguments);
}

#[test]
fn every_nic_has_its_own_socket_no_rom_and_no_mtu_unless_given() {
    let nic = |last| NicArgs { mac: Mac([0x52, 0x54, 0, 0, 0, last]), mtu: None };
    let machine = Machine { nics: vec![nic(1), nic(2)], ..machine() };
    let netdevs = objects(&machine, "-netdev");
    let paths: Vec<_> = netdevs.iter().map(|n| n["addr"]["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["nic0.sock", "nic1.sock"]);
    let devices = objects(&machine, "-device");
    let nics: Vec<_> = devices.iter().filter(|d| d["driver"] == "virtio-net-pci").collect();
    assert_eq!(nics.len(), 2);
    for nic in nics {
        assert_eq!(nic["romfile"], "");
        assert!(nic.get("host_mtu").is_none());
    }
}

#[test]
fn a_qemu_without_seccomp_is_not_asked_for_it() {
    assert!(values(&Machine { sandbox: false, ..machine() }, "-sandbox").is_empty());
}
