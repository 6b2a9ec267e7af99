//! Lab files: which nodes, which networks, what is plugged where.
//!
//! ```toml
//! name = "one-node"
//!
//! [networks.management]
//! subnet = "192.168.103.0/24"
//! outside = "192.168.103.1"    # our own leg's address
//! ntp = true                   # our leg serves the time (optional)
//! # mtu = 1500                 # optional
//!
//! [nodes.openstack1]
//! image = "debian-13-node"
//! memory = "6GiB"
//! cpus = 2
//! disk = "20GiB"               # optional: the image's own size
//! roles = ["controller"]       # optional: what they mean is not the lab's business
//!
//! [[nodes.openstack1.nics]]
//! network = "management"
//! address = "192.168.103.11"   # optional: a NIC may have none
//! # mac = "52:54:00:12:34:56"  # optional: derived from lab, node and network
//! ```

mod read;
mod units;

pub use units::{Bytes, GIB, KIB, MIB, Subnet};

use super::mac::Mac;
use crate::error::{Error, Kind, Result};
use crate::fsutil;
use read::{At, Source, Table};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// A lab file, read and found consistent.
#[derive(Clone, Debug)]
pub struct LabSpec {
    pub file: PathBuf,
    /// The file as it was read: parsed again it gives the same lab.
    pub text: String,
    pub name: String,
    /// In the order of the file, as are the nodes and their NICs.
    pub networks: Vec<NetworkSpec>,
    pub nodes: Vec<NodeSpec>,
}

impl LabSpec {
    /// Whether both describe the same machines and networks, whatever they and their files are
    /// called and wherever in them it stands.
    pub fn same_lab(&self, other: &LabSpec) -> bool {
        let networks = |spec: &LabSpec| {
            let one = |n: &NetworkSpec| NetworkSpec { line: 0, ..n.clone() };
            spec.networks.iter().map(one).collect::<Vec<_>>()
        };
        let nodes = |spec: &LabSpec| {
            let one = |n: &NodeSpec| NodeSpec {
                line: 0,
                image_line: 0,
                disk_line: 0,
                memory_line: 0,
                ..n.clone()
            };
            spec.nodes.iter().map(one).collect::<Vec<_>>()
        };
        networks(self) == networks(other) && nodes(self) == nodes(other)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct NetworkSpec {
    pub name: String,
    pub line: usize,
    pub subnet: Subnet,
    /// The address of our own leg. Without one we only switch.
    pub outside: Option<Ipv4Addr>,
    /// Whether our leg serves the time.
    pub ntp: bool,
    pub mtu: Option<u16>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct NodeSpec {
    pub name: String,
    pub line: usize,
    pub image: String,
    pub image_line: usize,
    /// Bytes, a multiple of one MiB.
    pub memory: u64,
    pub cpus: u32,
    /// Bytes. None is the image's own size.
    pub disk: Option<u64>,
    /// Where `disk` stands, else the node.
    pub disk_line: usize,
    pub memory_line: usize,
    pub roles: Vec<String>,
    /// Never empty; names no network twice.
    pub nics: Vec<NicSpec>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct NicSpec {
    pub network: String,
    pub mac: Mac,
    pub address: Option<Ipv4Addr>,
}

impl NodeSpec {
    /// Where we log in: the first NIC with an address on a network that has a leg of ours.
    pub fn login(&self, lab: &LabSpec) -> Option<(&str, Ipv4Addr)> {
        self.nics.iter().find_map(|nic| {
            let network = lab.network(&nic.network)?;
            network.outside?;
            Some((nic.network.as_str(), nic.address?))
        })
    }
    pub fn address_on(&self, network: &str) -> Option<Ipv4Addr> {
        self.nics.iter().find(|n| n.network == network)?.address
    }
}

impl LabSpec {
    pub fn load(file: &Path) -> Result<LabSpec> {
        let text = fsutil::read_text(file, Kind::Input).map_err(|e| match e.hint_text() {
            Some(_) => e,
            None => e.hint("labs live in vmtests/labs/; name one with --lab FILE"),
        })?;
        Self::parse(file, &text)
    }

    /// `file` is only named in errors.
    pub fn parse(file: &Path, text: &str) -> Result<LabSpec> {
        let source = Source { file, text };
        let tree = read::parse(&source)?;
        let root = Table::root(&source, &tree);
        root.only(&["name", "networks", "nodes"])?;

        let name = root.str("name", "\"two-node\"")?;
        check_name(&root, name, "lab", 40)?;
        let lab = name.value.to_owned();
        let networks = root
            .named_tables("networks", "network")?
            .into_iter()
            .map(|(name, table)| network(name, &table))
            .collect::<Result<Vec<_>>>()?;
        check_networks(&source, &networks)?;

        let mut nodes = Vec::new();
        let mut taken = Taken::new(&networks);
        for (name, table) in root.named_tables("nodes", "node")? {
            nodes.push(node(name, &table, &lab, &networks, &mut taken)?);
        }
        if nodes.is_empty() {
            return Err(source.error(1, "the lab has no nodes").hint("add a table [nodes.NAME]"));
        }
        let (file, text) = (file.to_owned(), text.to_owned());
        let spec = LabSpec { file, text, name: lab, networks, nodes };
        for node in &spec.nodes {
            if node.login(&spec).is_none() {
                let message = format!("node {} cannot be reached", node.name);
                return Err(source.error(node.line, message).hint(
                    "give one of its NICs an `address` on a network that has `outside`: \
                     we log in through that leg",
                ));
            }
        }
        Ok(spec)
    }

    pub fn network(&self, name: &str) -> Option<&NetworkSpec> {
        self.networks.iter().find(|n| n.name == name)
    }
    pub fn node(&self, name: &str) -> Option<&NodeSpec> {
        self.nodes.iter().find(|n| n.name == name)
    }
    /// The memory of all guests together, in bytes.
    pub fn memory(&self) -> u64 {
        self.nodes.iter().map(|n| n.memory).sum()
    }
}

/// The slots of q35's root bus that are left beside two disks, the random number generator, the serial
/// bus and the balloon (see [`super::qemu`]).
pub const MAX_NICS: usize = 25;

/// Names that mean something else already. A network's name becomes the name of a NIC in the
/// nodes, and a directory under /proc/sys/net.
const RESERVED: &[&str] = &["localhost", "outside", "host", "lo", "all", "default", "lab", "ovs"];

/// Kernel and Open vSwitch names that a NIC must not be renamed to.
const RESERVED_NIC_PREFIXES: &[&str] = &["eth", "en", "br-", "tap", "ovs-", "vxlan", "veth", "qr-"];

/// A name is a host name, a directory and a part of a report: letters, digits and hyphens.
fn check_name(table: &Table, name: At<&str>, kind: &str, longest: usize) -> Result<()> {
    let text = name.value;
    let plain = text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    let framed = text.starts_with(|c: char| c.is_ascii_lowercase()) && !text.ends_with('-');
    if !(plain && framed && text.len() <= longest) {
        return Err(table.bad(name.line, format!("`{text}` is no name for a {kind}")).hint(
            format!("use at most {longest} small letters, digits and hyphens, a letter first"),
        ));
    }
    if RESERVED.contains(&text) {
        let message = format!("`{text}` is reserved and cannot name a {kind}");
        return Err(table.bad(name.line, message).hint("choose another name"));
    }
    Ok(())
}

fn network(name: String, table: &Table) -> Result<NetworkSpec> {
    table.only(&["subnet", "outside", "ntp", "mtu"])?;
    let at = At { value: name.as_str(), line: table.line };
    // A NIC's name has at most 15 characters in Linux.
    check_name(table, at, "network", 15)?;
    if let Some(prefix) = RESERVED_NIC_PREFIXES.iter().find(|p| name.starts_with(**p)) {
        let message = format!("network `{name}` begins with `{prefix}`");
        return Err(table.bad(table.line, message).hint(
            "the nodes' NICs are named after their networks, and such names are the kernel's own",
        ));
    }
    let wanted = "an IPv4 network such as 192.168.103.0/24 (prefix 8 to 30, no host bits)";
    let subnet: At<Subnet> = table.parsed("subnet", wanted, "\"192.168.103.0/24\"")?;
    let outside = table.opt_parsed::<Ipv4Addr>("outside", "an IPv4 address")?;
    if let Some(leg) = outside {
        check_inside(table, leg, subnet.value)?;
    }
    let ntp = table.opt_bool("ntp")?.unwrap_or(false);
    if ntp && outside.is_none() {
        return Err(table
            .bad(table.line, format!("network {name} has `ntp` and no `outside`"))
            .hint("our leg serves the time: give it an address with `outside`"));
    }
    // 576 is what every IPv4 host must take; 9216 what the switch carries.
    let mtu = table.opt_number("mtu", 576..=9216)?.map(|m| m.value as u16);
    let outside = outside.map(|o| o.value);
    Ok(NetworkSpec { name, line: table.line, subnet: subnet.value, outside, ntp, mtu })
}

fn check_networks(source: &Source, networks: &[NetworkSpec]) -> Result<()> {
    for (i, b) in networks.iter().enumerate() {
        if let Some(a) = networks[..i].iter().find(|a| a.subnet.overlaps(b.subnet)) {
            let message = format!(
                "network {} ({}) overlaps network {} ({}, line {})",
                b.name, b.subnet, a.name, a.subnet, a.line
            );
            return Err(source.error(b.line, message).hint("give each network its own addresses"));
        }
    }
    Ok(())
}

fn check_inside(table: &Table, address: At<Ipv4Addr>, subnet: Subnet) -> Result<()> {
    let At { value, line } = address;
    if !subnet.contains(value) {
        return Err(table
            .bad(line, format!("{value} is not in {subnet}"))
            .hint(format!("choose an address of {subnet}")));
    }
    if value == subnet.address || value == subnet.broadcast() {
        return Err(table
            .bad(line, format!("{value} is the network or broadcast address of {subnet}"))
            .hint("choose an address between them"));
    }
    Ok(())
}

/// Which addresses are whose, to name both when two are the same.
struct Taken<'n> {
    networks: &'n [NetworkSpec],
    addresses: HashMap<Ipv4Addr, String>,
    macs: HashMap<Mac, String>,
}

impl<'n> Taken<'n> {
    fn new(networks: &'n [NetworkSpec]) -> Self {
        let legs = networks.iter().filter_map(|n| {
            Some((n.outside?, format!("our own leg on {} (line {})", n.name, n.line)))
        });
        Taken { networks, addresses: legs.collect(), macs: HashMap::new() }
    }
}

fn node(
    name: String,
    table: &Table,
    lab: &str,
    networks: &[NetworkSpec],
    taken: &mut Taken,
) -> Result<NodeSpec> {
    table.only(&["image", "memory", "cpus", "disk", "roles", "nics"])?;
    check_name(table, At { value: &name, line: table.line }, "node", 32)?;
    let image = table.str("image", "\"debian-13-node\"")?;
    if image.value.is_empty() {
        return Err(table.bad(image.line, format!("node {name} has an empty `image`")));
    }
    let wanted = "a size with its unit, such as 512MiB or 6GiB";
    let memory: At<Bytes> = table.parsed("memory", wanted, "\"6GiB\"")?;
    let memory_range = 16 * MIB..=4096 * GIB;
    if !memory_range.contains(&memory.value.0) || !memory.value.0.is_multiple_of(MIB) {
        return Err(table
            .bad(memory.line, format!("node {name} cannot have {} of memory", memory.value))
            .hint("use whole MiB, from 16MiB to 4TiB; a full node needs about 6GiB"));
    }
    let cpus = table.number("cpus", 1..=64, "2")?.value;
    let disk: Option<At<Bytes>> = table.opt_parsed("disk", wanted)?;
    if let Some(disk) = disk
        && (disk.value.0 < MIB
            || !disk.value.0.is_multiple_of(512)
            || disk.value.0 > 64 * 1024 * GIB)
    {
        return Err(table
            .bad(disk.line, format!("node {name} cannot have a disk of {}", disk.value))
            .hint("use from 1MiB to 64TiB, or leave `disk` out for the image's own size"));
    }
    let mut roles: Vec<String> = Vec::new();
    for role in table.strings("roles")? {
        if roles.iter().any(|r| r == role.value) {
            let message = format!("node {name} has the role `{}` twice", role.value);
            return Err(table.bad(role.line, message).hint("name each role once"));
        }
        check_name(table, role, "role", 32)?;
        roles.push(role.value.to_owned());
    }
    let mut nics: Vec<NicSpec> = Vec::new();
    for nic_table in table.list_of_tables("nics", "NIC")? {
        let nic = nic(&name, &nic_table, lab, networks, taken)?;
        if nics.iter().any(|n| n.network == nic.network) {
            let message = format!("node {name} has two NICs on network {}", nic.network);
            return Err(table
                .bad(nic_table.line, message)
                .hint("a node has at most one NIC on each network: both would have its name"));
        }
        nics.push(nic);
    }
    if nics.len() > MAX_NICS {
        let message = format!("node {name} has {} NICs, and {MAX_NICS} fit", nics.len());
        return Err(table
            .bad(table.line, message)
            .hint("each takes one of the machine's PCI slots: split the lab into more nodes"));
    }
    if nics.is_empty() {
        return Err(table
            .bad(table.line, format!("node {name} has no NIC"))
            .hint(format!("add a table [[nodes.{name}.nics]]")));
    }
    let (line, image_line, memory_line) = (table.line, image.line, memory.line);
    let disk_line = disk.map_or(line, |d| d.line);
    let (image, memory, disk) = (image.value.to_owned(), memory.value.0, disk.map(|d| d.value.0));
    Ok(NodeSpec {
        name,
        line,
        image,
        image_line,
        memory,
        cpus,
        disk,
        disk_line,
        memory_line,
        roles,
        nics,
    })
}

fn nic(
    node: &str,
    table: &Table,
    lab: &str,
    networks: &[NetworkSpec],
    taken: &mut Taken,
) -> Result<NicSpec> {
    table.only(&["network", "mac", "address"])?;
    let name = table.str("network", "\"management\"")?;
    let Some(network) = networks.iter().find(|n| n.name == name.value) else {
        let known: Vec<&str> = networks.iter().map(|n| n.name.as_str()).collect();
        let hint = match read::nearest(name.value, &known) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => "add a table [networks.NAME]".into(),
            None => format!("the lab has: {}", known.join(", ")),
        };
        let message = format!("node {node} has a NIC on the unknown network `{}`", name.value);
        return Err(table.bad(name.line, message).hint(hint));
    };
    let wanted = "a unicast hardware address such as 52:54:00:12:34:56";
    let mac = table.opt_parsed::<Mac>("mac", wanted)?;
    let derived = Mac::derived(lab, node, &network.name);
    let At { value: mac, line } = mac.unwrap_or(At { value: derived, line: table.line });
    let owner = format!("{node}'s NIC on {} (line {})", network.name, table.line);
    if let Some(other) = taken.macs.insert(mac, owner.clone()) {
        return Err(table
            .bad(line, format!("{mac} is already the hardware address of {other}"))
            .hint("leave `mac` out to get one of its own"));
    }
    let address = table.opt_parsed::<Ipv4Addr>("address", "an IPv4 address")?;
    if let Some(address) = address {
        check_inside(table, address, network.subnet).map_err(|e| elsewhere(e, address, taken))?;
        if let Some(other) = taken.addresses.insert(address.value, owner) {
            let message = format!("{} is already the address of {other}", address.value);
            return Err(table.bad(address.line, message).hint("each NIC needs its own"));
        }
    }
    Ok(NicSpec { network: network.name.clone(), mac, address: address.map(|a| a.value) })
}

/// An address that fits another network was probably put on the wrong NIC.
fn elsewhere(error: Error, address: At<Ipv4Addr>, taken: &Taken) -> Error {
    match taken.networks.iter().find(|n| n.subnet.contains(address.value)) {
        Some(n) => error.hint(format!("it belongs to network {}: the wrong NIC?", n.name)),
        None => error,
    }
}

#[cfg(test)]
mod tests;
