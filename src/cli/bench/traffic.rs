//! Frames between two guests through our switch, beside the same guests on vde_switch, and on a wire
//! between them: what no switch can surpass.
//!
//! One guest sends, the other throws it away. With TCP it is mostly the guests' kernels that are
//! measured, and what they acknowledge is never more than the way carries. So the sender's kernel
//! also makes frames as fast as its NIC takes them (pktgen), which nobody paces but the way itself.
//! Their NICs get whole frames in all cases: neither of QEMU's netdevs (`stream`, `vde`) offloads
//! segments or checksums. What is counted is what the kernels of the guests count, and the time is
//! that of the console's lines on the host's clock.

use super::boot::{self, NOT_BUILT};
use super::guests;
use super::peers;
use super::race;
use super::switch::{Carried, rows};
use super::vde::{self, Vde};
use super::{Host, Number, TRIES};
use crate::cli::record::NotRun;
use crate::cli::root::Root;
use crate::cli::session::Work;
use crate::cluster::{host, images, runs};
use crate::error::{Context, Error, Kind, Result};
use crate::images::build::Built;
use crate::images::build::cpio::Archive;
use crate::images::manifest::Manifest;
use crate::images::store::Store;
use crate::lab::console::Line;
use crate::lab::mac::Mac;
use crate::lab::qemu::{Boot, Machine, NicArgs};
use crate::lab::rundir::RunDir;
use crate::lab::spec::{LabSpec, NodeSpec};
use crate::lab::switch::{Network, Switch};
use crate::lab::vm::{Vm, VmConfig};
use crate::wait::Patience;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MTUS: [u16; 2] = [1500, 9000];
/// The largest that [`vde::PROGRAM`] carries.
const VDE_MTU: u16 = 1500;

/// probe-guest with one module more, in the store. Not `probe-guest`, for which it must not be taken.
const FLOODS: &str = "bench-pktgen";
const MODULES: &str = "modules = [";
const PKTGEN: &str = "modules = [\"pktgen\", ";

/// On the reference machine: from power on until the guest begins its part, one try, and the end
/// of the last frames' journey.
const BOOTS: Duration = Duration::from_secs(30);
const CARRIES: Duration = Duration::from_secs(20);
const SETTLES: Duration = Duration::from_secs(20);

const NETWORK: &str = "management";
const SENDER: &str = "sender";
const RECEIVER: &str = "receiver";
const RECEIVERS_ADDRESS: &str = "192.168.103.12";

/// The last word of a line that a guest reports with. It ends the line, so that what a wait finds
/// is whole. The shell of the guest gives none of its characters a meaning.
const LISTENS: &str = "listens.";
const BEGINS: &str = "begins.";
const ENDS: &str = "ends.";
const RECEIVED: &str = "received.";
const TOTAL: &str = "total.";

/// What the sender sends.
#[derive(Clone, Copy, Debug)]
enum Load {
    /// As much as the receiver's TCP acknowledges.
    Tcp,
    /// Frames as fast as its NIC takes them.
    Flood,
}

impl Load {
    const ALL: [Load; 2] = [Load::Tcp, Load::Flood];

    fn row(self) -> &'static str {
        match self {
            Load::Tcp => "switch between guests, TCP",
            Load::Flood => "switch between guests, saturated",
        }
    }

    /// What each try carries, in MiB: some seconds under an emulator.
    fn carries(self) -> usize {
        match self {
            Load::Tcp => 64,
            Load::Flood => 256,
        }
    }

    /// In full frames, for each try.
    fn frames(self, mtu: u16) -> u64 {
        (self.carries() << 20) as u64 / u64::from(mtu)
    }

    /// What both parts of one try do. `/run/traffic` has the connection as its standard input and
    /// output. The receiver tells the sender what it counted, who tells us: so all times are those
    /// of one console.
    fn parts(self, mtu: u16) -> Parts {
        match self {
            Load::Tcp => {
                let blocks = self.carries() << 20 >> 16;
                Parts {
                    receiver: format!(
                        "dd of=/dev/null bs=64k count={blocks} iflag=fullblock 2>/dev/null\n\tcount"
                    ),
                    sender: format!(
                        "echo {BEGINS} >&2\n\
                         \tdd if=/dev/zero bs=64k count={blocks} 2>/dev/null\n\
                         \tread -r got || exit\n\
                         \techo {ENDS} >&2"
                    ),
                    prepares: String::new(),
                }
            }
            // What is under way when the sender ends is taken for carried: what two sockets and a ring
            // hold, of 256 MiB. What is lost is counted when all has settled.
            Load::Flood => Parts {
                receiver: "echo ready\n\tread -r ended || exit\n\tsettle".into(),
                sender: format!(
                    "read -r ready || exit\n\
                     \techo {BEGINS} >&2\n\
                     \techo start >/proc/net/pktgen/pgctrl\n\
                     \techo {ENDS} >&2\n\
                     \techo ended\n\
                     \tread -r got || exit"
                ),
                prepares: pktgen(mtu, self.frames(mtu)),
            },
        }
    }
}

struct Parts {
    receiver: String,
    sender: String,
    /// The sender, once.
    prepares: String,
}

/// Its frames are of IPv6, which is off in the guests: the receiver's kernel counts them and throws
/// them away with less work than anything else that it could do with them.
fn pktgen(mtu: u16, frames: u64) -> String {
    let size = usize::from(mtu) + race::HEADER;
    format!(
        "insmod /lib/modules/pktgen.ko\n\
         echo \"add_device eth0\" >/proc/net/pktgen/kpktgend_0\n\
         set_to() {{ echo \"$1\" >/proc/net/pktgen/eth0 || echo \"pktgen: no $1\" >&2; }}\n\
         for part in \"count {frames}\" \"pkt_size {size}\" \"clone_skb 1000000\" \"burst 32\" \"delay 0\" \\\n\
         \t\"src6 fd00::1\" \"dst6 fd00::2\" \"dst_mac $to\"\n\
         do set_to \"$part\"; done\n"
    )
}

/// For both. The counters are read without a fork, which would cost an emulator tens of
/// milliseconds.
fn counting() -> String {
    format!(
        r#"count() {{
	cd /sys/class/net/eth0/statistics
	read -r tx <tx_packets
	read -r rx <rx_packets
	read -r bytes <rx_bytes
}}
# Until nothing is under way any more.
settle() {{
	count
	while was=$tx:$rx; sleep 1; count; [ "$was" != "$tx:$rx" ]; do :; done
}}
total() {{
	settle
	echo "traffic $tx $rx {TOTAL}"
}}
"#
    )
}

/// What a guest does once it is up. `/run/traffic` gets the connection itself, so that no byte
/// takes a way through `nc`.
fn user_data(role: &str) -> String {
    let part = match role {
        RECEIVER => format!("echo {LISTENS}\nnc -l -p 5000 -e /run/traffic"),
        _ => format!("nc {RECEIVERS_ADDRESS} 5000 -e /run/traffic"),
    };
    format!("#!/bin/sh\nexec </dev/null >/dev/ttyS0 2>&1\n. /run/count\n{part}\ntotal\n")
}

fn traffic(role: &str, load: Load, mtu: u16, receiver: Mac) -> String {
    let Parts { receiver: receives, sender, prepares } = load.parts(mtu);
    let (prepares, part) = match role {
        RECEIVER => (
            String::new(),
            format!(
                "\tcount\n\trx_before=$rx bytes_before=$bytes\n\t{receives}\n\
                 \techo \"$((rx - rx_before)) $((bytes - bytes_before))\"\n"
            ),
        ),
        _ => (
            format!("to={receiver}\n{prepares}"),
            format!("\t{sender}\n\techo \"traffic $got {RECEIVED}\" >&2\n"),
        ),
    };
    let start = format!("#!/bin/sh\n. /run/count\n{prepares}try=0\n");
    format!("{start}while [ $try -lt {TRIES} ]; do\n\ttry=$((try + 1))\n{part}done\n")
}

/// Rows, and what could not be compared.
pub async fn measure(work: &Work, host: &Host) -> Result<(Vec<Number>, Vec<NotRun>)> {
    let store = Store::open(&work.env.store)?;
    let manifest = Manifest::load(&Root::find(&work.env)?.images().join("probe-guest.toml"))?;
    let (mut numbers, mut not_run) = (Vec::new(), Vec::new());
    for load in Load::ALL {
        let built = match load {
            Load::Tcp => images::built(work, &store, &manifest)?.ok_or_else(|| NOT_BUILT.into()),
            // The mirror may be away: that costs these rows and nothing else.
            Load::Flood => {
                let built = images::build(work, &store, &floods(&manifest)?).await;
                built.map_err(|e| format!("its guest cannot be made: {e}"))
            }
        };
        match built {
            Ok(built) => {
                let (rows, missing) = under(work, host, &built, load).await?;
                numbers.extend(rows);
                not_run.extend(missing);
            }
            Err(reason) => not_run.push(NotRun { name: load.row().into(), reason }),
        }
    }
    Ok((numbers, not_run))
}

/// The guest that can make frames in its kernel.
fn floods(probe_guest: &Manifest) -> Result<Manifest> {
    guests::variant(probe_guest, FLOODS, MODULES, PKTGEN)
}

/// The rows of one load.
async fn under(
    work: &Work,
    host: &Host,
    built: &Built,
    load: Load,
) -> Result<(Vec<Number>, Vec<NotRun>)> {
    let (mut numbers, mut not_run) = (Vec::new(), Vec::new());
    for mtu in MTUS {
        let spec = LabSpec::parse(Path::new("bench.toml"), &lab(mtu))?;
        let _room = host::reserve(work, &spec, false).await?;
        let race = Race { work, host, built, load, mtu, spec: &spec, patience: work.patience() };
        let ours = race.run(Between::Ours(Switch::new().network(NETWORK))).await?;
        if ours.received != ours.sent {
            let lost = ours.sent.abs_diff(ours.received);
            let message = format!("of {} frames between guests {lost} were lost", ours.sent);
            return Err(Error::internal(message));
        }
        let peer = match mtu {
            ..=VDE_MTU => beside(&race).await,
            _ => Err("it cuts frames to 1518 bytes, as between endpoints".into()),
        };
        let name = format!("{}, {mtu}-byte frames", load.row());
        numbers.extend(rows(&name, ours, peer.as_ref().ok().map(|&p| (vde::PROGRAM, p))));
        if let Err(reason) = peer {
            let name = format!("{}, {mtu} bytes: {}", load.row(), vde::PROGRAM);
            not_run.push(NotRun { name, reason });
        }
        let folder = tempfile::tempdir().doing(Kind::Host, || "a temporary folder".into())?;
        let wire = race.run(Between::Wire(folder.path().join("wire"))).await?;
        let [frames, _] = rows(&name, ours, Some(("a wire and no switch", wire)));
        numbers.push(frames);
    }
    Ok((numbers, not_run))
}

/// The same on [`vde::PROGRAM`], or why not.
async fn beside(race: &Race<'_>) -> std::result::Result<Carried, String> {
    match Vde::start(&race.patience).await {
        Ok(Some(vde)) => race.run(Between::Vde(&vde)).await.map_err(|e| boot::reason(&e)),
        Ok(None) => Err(vde::INSTALL.into()),
        Err(e) => Err(e.to_string()),
    }
}

/// Two small guests on one network. `outside` is there because every lab has it: nothing of ours
/// is plugged in beside them.
fn lab(mtu: u16) -> String {
    let node = |name, address| {
        format!(
            "[nodes.{name}]\nimage = \"probe-guest\"\nmemory = \"128MiB\"\ncpus = 1\n\
             [[nodes.{name}.nics]]\nnetwork = \"{NETWORK}\"\naddress = \"{address}\"\n"
        )
    };
    format!(
        "name = \"bench-traffic\"\n\
         [networks.{NETWORK}]\nsubnet = \"192.168.103.0/24\"\noutside = \"192.168.103.1\"\n\
         mtu = {mtu}\n{}{}",
        node(RECEIVER, RECEIVERS_ADDRESS),
        node(SENDER, "192.168.103.11")
    )
}

/// What carries the frames.
enum Between<'a> {
    Ours(Network),
    Vde(&'a Vde),
    /// The receiver's QEMU listens at this path, and the sender's connects: nothing is between them.
    Wire(PathBuf),
}

impl Between<'_> {
    /// QEMU's netdev, where it is not that of a lab's machine.
    fn netdev(&self, role: &str) -> Option<Value> {
        match self {
            Between::Ours(_) => None,
            Between::Vde(vde) => Some(json!({"type": "vde", "id": "nic0", "sock": vde.sockets()})),
            Between::Wire(path) => {
                Some(json!({"type": "stream", "id": "nic0", "server": role == RECEIVER,
                    "addr": {"type": "unix", "path": path}}))
            }
        }
    }
}

struct Race<'a> {
    work: &'a Work,
    host: &'a Host,
    built: &'a Built,
    load: Load,
    mtu: u16,
    spec: &'a LabSpec,
    patience: Patience,
}

impl Race<'_> {
    async fn run(&self, between: Between<'_>) -> Result<Carried> {
        let dir = RunDir::create(&runs(&self.work.env.store), &self.spec.name)?;
        let receiver = self.start(RECEIVER, &dir, &between).await?;
        let carried = self.carry(&receiver, &dir, &between);
        let mut dead = receiver.death();
        let switch_ended = async {
            match &between {
                Between::Ours(_) | Between::Wire(_) => std::future::pending().await,
                Between::Vde(vde) => vde.ended().await,
            }
        };
        tokio::select! {
            out = carried => out,
            cause = dead.wait() => Err(Error::lab(cause).evidence(receiver.evidence())),
            ended = switch_ended => Err(ended),
        }
    }

    /// The sender is switched on when the receiver listens: before, its frames would be lost.
    async fn carry(&self, receiver: &Vm, dir: &RunDir, between: &Between<'_>) -> Result<Carried> {
        receiver.wait_for(LISTENS, 0, BOOTS).await?;
        let sender = self.start(SENDER, dir, between).await?;
        let (mut next, mut tries) = (0, Vec::new());
        for _ in 0..TRIES {
            let begin = sender.wait_for(BEGINS, next, BOOTS).await?;
            let end = sender.wait_for(ENDS, begin.number + 1, CARRIES).await?;
            let got = sender.wait_for(RECEIVED, end.number + 1, SETTLES).await?;
            next = got.number + 1;
            tries.push(((end.at - begin.at).as_secs_f64(), counts(&got)?));
        }
        let sent = counts(&sender.wait_for(TOTAL, next, SETTLES).await?)?;
        let received = counts(&receiver.wait_for(TOTAL, 0, SETTLES).await?)?;
        let least = TRIES as u64 * self.load.frames(self.mtu);
        if sent[0] < least {
            let message = format!("the sender sent {} frames instead of {least}", sent[0]);
            return Err(Error::lab(message).evidence(sender.evidence()));
        }
        Ok(fastest(&tries, sent, received))
    }

    async fn start(&self, role: &str, dir: &RunDir, between: &Between<'_>) -> Result<Vm> {
        let node = self.spec.node(role).expect("the lab has both roles");
        let dir = dir.subdir(role)?;
        let initrd = dir.join("initrd");
        let receiver = self.spec.node(RECEIVER).expect("the lab has it").nics[0].mac;
        let script = traffic(role, self.load, self.mtu, receiver);
        let write = || -> std::io::Result<()> {
            let image = fs::read(self.built.initrd())?;
            fs::write(&initrd, with_role(image, role, &script))
        };
        write().doing(Kind::Host, || format!("the {role}'s initramfs cannot be written"))?;
        let append = append(&self.built.cmdline()?, node);
        let mut hypervisor = self.host.hypervisor.clone();
        let mut machine = Machine {
            name: role.into(),
            accel: self.host.accel,
            cpus: node.cpus,
            memory: node.memory,
            boot: Boot::Kernel { kernel: self.built.kernel(), initrd: Some(initrd), append },
            disks: Vec::new(),
            nics: Vec::new(),
            incoming: None,
            sandbox: hypervisor.sandbox,
        };
        let nic = &node.nics[0];
        let mtu = self.spec.network(&nic.network).and_then(|n| n.mtu);
        let mut networks = Vec::new();
        if let Between::Ours(network) = between {
            machine.nics.push(NicArgs { mac: nic.mac, mtu });
            networks.push((network.name().to_owned(), network.clone()));
        }
        if let Some(netdev) = between.netdev(role) {
            // As our machines have it.
            let device = json!({"driver": "virtio-net-pci", "netdev": "nic0",
                "mac": nic.mac.to_string(), "romfile": "", "host_mtu": mtu});
            let more = ["-netdev".into(), netdev.to_string(), "-device".into(), device.to_string()];
            let script = dir.join("qemu");
            peers::script(&script, &peers::bound(&hypervisor.qemu, &more, None))?;
            hypervisor.qemu = script;
        }
        let (start, redactor) = (Instant::now(), self.work.redactor.clone());
        let config =
            VmConfig { machine, logs: dir.clone(), dir, networks, start, redactor, answers: None };
        let vm = Vm::start(&hypervisor, config, &self.patience).await?;
        vm.run().await?;
        Ok(vm)
    }
}

/// Its address is on the command line, and IPv6 is off: all that is sent is asked for by us.
fn append(cmdline: &str, node: &NodeSpec) -> String {
    let nic = &node.nics[0];
    let address = nic.address.expect("the lab gives one to each");
    format!("{cmdline} ipv6.disable=1 probe.metadata=no probe.ip={address}/24@{}", nic.mac)
}

/// An initramfs of several archives is what all of them hold.
fn with_role(mut image: Vec<u8>, role: &str, script: &str) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.file("run/count", 0o644, counting().as_bytes());
    archive.file("run/traffic", 0o755, script.as_bytes());
    archive.file("run/user-data", 0o755, user_data(role).as_bytes());
    image.resize(image.len().next_multiple_of(4), 0);
    image.extend(archive.finish());
    image
}

/// The two numbers before the last word of a report.
fn counts(line: &Line) -> Result<[u64; 2]> {
    let mut words = line.text.split_whitespace().rev().skip(1).map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(second)), Some(Ok(first))) => Ok([first, second]),
        _ => Err(Error::lab("a guest's report has no counts").evidence([line.to_string()])),
    }
}

/// The fastest of the tries (seconds; frames and bytes that came), and what was sent and received
/// by both guests in all of them.
fn fastest(tries: &[(f64, [u64; 2])], sender: [u64; 2], receiver: [u64; 2]) -> Carried {
    let rates = tries.iter().map(|(seconds, [frames, bytes])| {
        (*frames as f64 / seconds, *bytes as f64 / seconds / 1e6)
    });
    let (frames, megabytes) = rates.max_by(|a, b| a.0.total_cmp(&b.0)).expect("TRIES is not 0");
    let (sent, received) = (sender[0] + receiver[0], sender[1] + receiver[1]);
    Carried { frames, megabytes, sent, received }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line { number: 0, at: Duration::ZERO, text: text.into() }
    }

    #[test]
    fn the_labs_of_the_race_are_good_ones() {
        for mtu in MTUS {
            let spec = LabSpec::parse(Path::new("bench.toml"), &lab(mtu)).unwrap();
            for role in [SENDER, RECEIVER] {
                let append = append("quiet", spec.node(role).unwrap());
                assert!(append.contains(" probe.ip=192.168.103.1"), "{append}");
            }
        }
    }

    #[test]
    fn a_wire_has_one_end_that_listens() {
        let wire = Between::Wire("/tmp/wire".into());
        let servers = [RECEIVER, SENDER].map(|role| wire.netdev(role).unwrap()["server"].clone());
        assert_eq!(servers, [json!(true), json!(false)]);
        assert_eq!(Between::Ours(Switch::new().network(NETWORK)).netdev(SENDER), None);
    }

    #[test]
    fn the_counts_of_a_report_are_read_and_anything_else_is_told() {
        let read = counts(&line("[ 9.1] noise traffic 23214 35083660 received.")).unwrap();
        assert_eq!(read, [23214, 35_083_660]);
        for text in ["", "received.", "12 received.", "traffic 12 x received;"] {
            let error = counts(&line(text)).unwrap_err();
            assert!(error.message().contains("no counts"), "{text}: {error}");
        }
    }

    #[test]
    fn the_fastest_try_counts_and_the_losses_of_both_directions() {
        let tries = [(2.0, [100, 3_000_000]), (1.0, [100, 3_000_000]), (4.0, [100, 3_000_000])];
        let out = fastest(&tries, [310, 20], [21, 300]);
        assert_eq!((out.frames, out.megabytes), (100.0, 3.0));
        assert_eq!((out.sent, out.received), (331, 320));
    }

    #[test]
    fn a_guest_gets_its_part_behind_its_image_and_reports_with_whole_lines() {
        let to = "52:54:00:ab:00:01".parse().unwrap();
        let script = |role, load| traffic(role, load, 1500, to);
        let image = with_role(vec![7; 5], SENDER, &script(SENDER, Load::Tcp));
        assert_eq!(image[..14], *b"\x07\x07\x07\x07\x07\0\0\x00070701");
        for (role, load) in [SENDER, RECEIVER].iter().flat_map(|r| Load::ALL.map(|l| (r, l))) {
            let image = with_role(Vec::new(), role, &script(role, load));
            let text = String::from_utf8_lossy(&image).into_owned();
            for name in ["run/count", "run/traffic", "run/user-data"] {
                assert!(text.contains(name), "{text}");
            }
        }
        assert!(user_data(RECEIVER).contains("echo listens.\nnc -l -p 5000"));
        assert!(script(SENDER, Load::Tcp).contains("count=1024 2>/dev/null"));
        let flood = script(SENDER, Load::Flood);
        for part in ["to=52:54:00:ab:00:01\n", "\"count 178956\" \"pkt_size 1514\"", "dst_mac $to"]
        {
            assert!(flood.contains(part), "{flood}");
        }
        for word in [LISTENS, BEGINS, ENDS, RECEIVED, TOTAL] {
            assert!(word.bytes().all(|c| c.is_ascii_lowercase() || c == b'.'), "{word}");
        }
    }

    #[test]
    fn the_guest_that_floods_differs_from_probe_guest_in_one_module() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/probe-guest.toml");
        let guest = Manifest::load(&path).unwrap();
        let floods = floods(&guest).unwrap();
        assert_eq!(floods.text.replacen("\"pktgen\", ", "", 1), guest.text);
        assert_ne!(floods.text, guest.text);
    }
}
