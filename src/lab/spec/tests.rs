use super::*;

const GOOD: &str = r#"name = "pair"
[networks.management]
subnet = "192.168.103.0/24"
outside = "192.168.103.1"
ntp = true
[networks.external]
subnet = "172.24.4.0/24"
outside = "172.24.4.1"
mtu = 1400
[nodes.openstack2]
image = "debian-13-node"
memory = "6GiB"
cpus = 2
disk = "20GiB"
roles = ["controller", "network"]
[[nodes.openstack2.nics]]
network = "management"
address = "192.168.103.11"
[[nodes.openstack2.nics]]
network = "external"
[nodes.a]
image = "debian-13-node"
memory = "512MiB"
cpus = 1
[[nodes.a.nics]]
network = "management"
mac = "52:54:00:00:00:0A"
address = "192.168.103.12"
"#;

fn parse(text: &str) -> Result<LabSpec> {
    LabSpec::parse(Path::new("labs/x.toml"), text)
}

#[test]
fn the_same_lab_is_that_with_the_same_machines_and_networks_wherever_it_is_written() {
    let good = parse(GOOD).unwrap();
    let mut moved = parse(&format!("# words\n\n{GOOD}")).unwrap();
    (moved.file, moved.name) = ("elsewhere".into(), "other".into());
    assert!(good.same_lab(&moved));
    for (from, to) in [("512MiB", "768MiB"), ("mtu = 1400", "mtu = 1300"), ("00:0A", "00:0B")] {
        assert!(!good.same_lab(&parse(&GOOD.replacen(from, to, 1)).unwrap()), "{to}");
    }
}

/// The good lab with one thing changed must be refused; returns line, message and hint.
fn refused(from: &str, to: &str) -> (usize, String, String) {
    assert_eq!(GOOD.matches(from).count(), 1, "`{from}` must be there exactly once");
    let error = parse(&GOOD.replace(from, to)).expect_err(&format!("accepted `{to}`"));
    assert_eq!(error.kind(), Kind::Input);
    let (file, line) = error.file().expect("a file");
    assert_eq!(file, Path::new("labs/x.toml"));
    let hint = error.hint_text().unwrap_or_default().to_owned();
    (line.expect("a line"), error.message().to_owned(), hint)
}

#[test]
fn a_good_lab_is_read_whole_and_in_its_order() {
    let lab = parse(GOOD).unwrap();
    assert_eq!(lab.name, "pair");
    assert_eq!(lab.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["openstack2", "a"]);
    assert_eq!(lab.memory(), (6 << 30) + (512 << 20));
    let external = lab.network("external").unwrap();
    assert_eq!((external.mtu, external.ntp), (Some(1400), false));
    assert!(lab.network("management").unwrap().ntp);
    let node = lab.node("openstack2").unwrap();
    assert_eq!((node.line, node.disk, node.cpus), (10, Some(20 << 30), 2));
    assert_eq!(node.roles, ["controller", "network"]);
    assert_eq!(node.login(&lab), Some(("management", Ipv4Addr::new(192, 168, 103, 11))));
    assert_eq!(node.nics[1].address, None);
    assert_eq!(node.nics[1].mac, Mac::derived("pair", "openstack2", "external"));
    let a = lab.node("a").unwrap();
    assert_eq!(a.nics[0].mac.to_string(), "52:54:00:00:00:0a");
    assert_eq!((a.disk, a.roles.len()), (None, 0));
}

#[test]
fn the_labs_of_this_repository_are_good() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("vmtests/labs");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let lab = LabSpec::load(&entry.unwrap().path()).unwrap();
        assert_eq!(lab.file.file_stem().unwrap().to_str(), Some(lab.name.as_str()));
        names.push(lab.name.clone());
    }
    assert!(names.iter().any(|n| n == "two-node") && names.iter().any(|n| n == "one-node"));
}

#[test]
fn two_node_is_as_the_documents_say() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("vmtests/labs/two-node.toml");
    let lab = LabSpec::load(&file).unwrap();
    let [one, two] = lab.nodes.as_slice() else { panic!("two nodes") };
    assert_eq!((one.name.as_str(), two.name.as_str()), ("openstack1", "openstack2"));
    assert_eq!(one.roles, ["controller", "network"]);
    assert_eq!(two.roles, ["compute"]);
    assert_eq!(one.address_on("management"), Some(Ipv4Addr::new(192, 168, 103, 11)));
    assert_eq!(two.address_on("management"), Some(Ipv4Addr::new(192, 168, 103, 12)));
    assert!([one, two].iter().all(|n| n.nics.len() == 2 && n.address_on("external").is_none()));
    let (management, external) =
        (lab.network("management").unwrap(), lab.network("external").unwrap());
    assert_eq!(management.subnet.to_string(), "192.168.103.0/24");
    assert_eq!(management.outside, Some(Ipv4Addr::new(192, 168, 103, 1)));
    assert!(management.ntp);
    assert_eq!(external.subnet.to_string(), "172.24.4.0/24");
    assert_eq!(external.outside, Some(Ipv4Addr::new(172, 24, 4, 1)));
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_key_that_was_meant() {
    assert_eq!(
        refused("memory = \"6GiB\"", "memroy = \"6GiB\""),
        (12, "unknown key `memroy` in node openstack2".into(), "did you mean `memory`?".into())
    );
    assert_eq!(
        refused("ntp = true", "colour = 1").2,
        "network management knows: subnet, outside, ntp, mtu"
    );
    assert_eq!(refused("name = \"pair\"", "name = \"pair\"\nnodse = 1").2, "did you mean `nodes`?");
    assert_eq!(refused("mac = \"52:54:00:00:00:0A\"", "mca = 1").0, 27);
}

#[test]
fn duplicate_addresses_are_refused_naming_both_owners() {
    let (line, message, _) = refused("192.168.103.12", "192.168.103.11");
    assert_eq!(line, 28);
    assert_eq!(
        message,
        "192.168.103.11 is already the address of openstack2's NIC on management (line 16)"
    );
    let (_, message, _) = refused("192.168.103.12", "192.168.103.1");
    assert!(message.contains("our own leg on management (line 2)"), "{message}");
}

#[test]
fn duplicate_hardware_addresses_are_refused_even_against_a_derived_one() {
    let derived = Mac::derived("pair", "openstack2", "external").to_string();
    let (line, message, _) = refused("52:54:00:00:00:0A", &derived.to_uppercase());
    assert_eq!(line, 27);
    assert!(message.ends_with("openstack2's NIC on external (line 19)"), "{message}");
}

#[test]
fn addresses_must_be_usable_in_their_subnet() {
    let (line, message, _) = refused("192.168.103.12", "192.168.104.12");
    assert_eq!((line, message.as_str()), (28, "192.168.104.12 is not in 192.168.103.0/24"));
    let (_, _, hint) = refused("192.168.103.12", "172.24.4.12");
    assert_eq!(hint, "it belongs to network external: the wrong NIC?");
    assert_eq!(refused("192.168.103.12", "192.168.103.255").0, 28);
    assert_eq!(refused("192.168.103.12", "192.168.103.0").0, 28);
    assert_eq!(refused("\"192.168.103.1\"", "\"10.0.0.1\"").0, 4);
    assert!(refused("192.168.103.12", "x").1.contains("must be an IPv4 address"));
}

#[test]
fn networks_must_exist_and_not_overlap() {
    let (line, message, hint) = refused("network = \"external\"", "network = \"externl\"");
    assert_eq!(line, 20);
    assert_eq!(message, "node openstack2 has a NIC on the unknown network `externl`");
    assert_eq!(hint, "did you mean `external`?");
    let (line, message, _) = refused("172.24.4.0/24", "192.168.0.0/16");
    assert_eq!(line, 8, "its leg is outside of it first: {message}");
    let overlapping = GOOD.replace("172.24.4.0/24", "192.168.0.0/16");
    let overlapping = overlapping.replace("172.24.4.1", "192.168.4.1");
    let error = parse(&overlapping).unwrap_err();
    assert_eq!(error.file().unwrap().1, Some(6));
    assert!(error.message().contains("overlaps network management"), "{error}");
    assert_eq!(refused("network = \"external\"", "network = \"management\"").0, 19);
    assert_eq!(refused("subnet = \"172.24.4.0/24\"", "subnet = \"172.24.4.9/24\"").0, 7);
    assert_eq!(
        refused("outside = \"192.168.103.1\"\n", "").1,
        "network management has `ntp` and no `outside`"
    );
}

#[test]
fn names_are_plain_short_and_not_reserved() {
    let rename = |to: &str| {
        let error = parse(&GOOD.replace("nodes.a", &format!("nodes.{to}"))).unwrap_err();
        (error.file().unwrap().1.unwrap(), error.message().to_owned())
    };
    assert_eq!(rename("localhost"), (21, "`localhost` is reserved and cannot name a node".into()));
    for bad in ["A", "1a", "a-", "\"a b\"", "\"../x\"", &"a".repeat(33)] {
        assert_eq!(rename(bad).0, 21, "{bad}");
    }
    assert_eq!(refused("name = \"pair\"", "name = \"\"").0, 1);
    let network = |to: &str| parse(&GOOD.replace("external", to)).unwrap_err();
    for bad in ["default", "br-ex", "eth0", "a-very-long-name"] {
        assert_eq!(network(bad).file().unwrap().1, Some(6), "{bad}");
    }
}

#[test]
fn sizes_and_counts_must_make_sense() {
    for bad in ["0MiB", "8MiB", "6", "6GB", "-6GiB", "1025KiB", "9999TiB"] {
        assert_eq!(refused("6GiB", bad).0, 12, "{bad}");
    }
    for bad in ["0GiB", "1.5GiB", "big", "99999TiB"] {
        assert_eq!(refused("20GiB", bad).0, 14, "{bad}");
    }
    for bad in ["0", "65", "-1", "\"2\"", "1.5"] {
        assert_eq!(refused("cpus = 2", &format!("cpus = {bad}")).0, 13, "{bad}");
    }
    for bad in ["0", "100", "70000", "true"] {
        assert_eq!(refused("mtu = 1400", &format!("mtu = {bad}")).0, 9, "{bad}");
    }
}

#[test]
fn roles_are_named_once() {
    let (line, message, _) = refused("\"network\"]", "\"controller\"]");
    assert_eq!((line, message.as_str()), (15, "node openstack2 has the role `controller` twice"));
    assert_eq!(refused("\"network\"]", "3]").0, 15);
}

#[test]
fn what_is_missing_is_said_with_an_example() {
    let (line, message, hint) = refused("image = \"debian-13-node\"\nmemory = \"6GiB\"\n", "");
    assert_eq!((line, message.as_str()), (10, "node openstack2 has no `image`"));
    assert_eq!(hint, "add a line such as: image = \"debian-13-node\"");
    assert_eq!(refused("name = \"pair\"\n", "").1, "a lab file has no `name`");
    assert_eq!(parse("name = \"x\"").unwrap_err().message(), "the lab has no nodes");
    let no_nic = &GOOD[..GOOD.find("[[nodes.a.nics]]").unwrap()];
    assert_eq!(parse(no_nic).unwrap_err().message(), "node a has no NIC");
}

#[test]
fn a_node_that_we_could_not_log_in_to_is_refused() {
    let (line, message, _) = refused("address = \"192.168.103.12\"\n", "");
    assert_eq!((line, message.as_str()), (21, "node a cannot be reached"));
}

#[test]
fn broken_toml_is_refused_with_its_line() {
    assert_eq!(refused("cpus = 2", "cpus = ").0, 13);
    assert_eq!(refused("cpus = 2", "cpus = 2\ncpus = 3").0, 14);
    assert_eq!(refused("[nodes.a]", "[nodes.openstack2]").0, 21);
}

#[test]
fn a_missing_file_is_named() {
    let error = LabSpec::load(Path::new("/nonexistent/x.toml")).unwrap_err();
    assert_eq!(error.kind(), Kind::Input);
    assert_eq!(error.file().unwrap().0, Path::new("/nonexistent/x.toml"));
}

#[test]
fn more_nics_than_slots_are_refused() {
    let networks = |n: usize| -> String {
        let network = |i| format!("[networks.n{i}]\nsubnet = \"10.{i}.0.0/24\"\n");
        (0..n).map(network).collect()
    };
    let nics = |n: usize| -> String {
        (0..n).map(|i| format!("[[nodes.a.nics]]\nnetwork = \"n{i}\"\n")).collect()
    };
    let lab = |n: usize| {
        let text = format!(
            "name = \"x\"\n{}{}",
            networks(n).replacen("/24\"\n", "/24\"\noutside = \"10.0.0.1\"\n", 1),
            "[nodes.a]\nimage = \"i\"\nmemory = \"1GiB\"\ncpus = 1\n".to_owned()
                + &nics(n).replacen("\"n0\"\n", "\"n0\"\naddress = \"10.0.0.2\"\n", 1)
        );
        parse(&text)
    };
    lab(MAX_NICS).unwrap();
    let error = lab(MAX_NICS + 1).unwrap_err();
    assert!(error.message().contains("26 NICs, and 25 fit"), "{error}");
    assert!(error.file().unwrap().1.is_some());
}
