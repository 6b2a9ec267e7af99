//! What is done on the nodes of a lab around its checkpoints: over SSH through our legs, with the
//! lab's key and the pinned host keys.

use crate::engine::inventory::{Family, Node};
use crate::engine::ssh;
use crate::engine::transport::{Connector, Ssh, Stream};
use crate::error::{Error, FailureCause, Kind, Result};
use crate::event::Events;
use crate::lab::Lab;
use crate::lab::checkpoint::{BLANK, SLIM};
use crate::lab::clock::{ClockAim, ClockOffset, since_epoch};
use crate::lab::outside::{ConnectFailure, Leg, TcpStream};
use crate::wait::{Death, Patience, Poll, Speed, together};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// One TCP connection to a node, on the reference machine.
const CONNECTING: Duration = Duration::from_secs(6);
/// An SSH session with all that its connection may take, on the reference machine.
pub const HANDSHAKE: Duration =
    CONNECTING.saturating_add(LISTENING).saturating_add(Duration::from_secs(6));
/// A machine that boots has its address before its SSH server listens: so long a refusal is not
/// believed, on the reference machine.
const LISTENING: Duration = Duration::from_secs(4);
/// A node that pages its memory in again says nothing for so long, on the reference machine.
const SILENCE: Duration = Duration::from_secs(15);
const REFUSED_AGAIN: Duration = Duration::from_millis(200);
/// To give back what a node keeps and does not need, on the reference machine.
const SLIMMING: Duration = Duration::from_secs(30);
/// Until a clock is set over SSH, on the reference machine.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(20);
/// One setting of it, with the look that follows.
const SETTING_TIMEOUT: Duration = Duration::from_secs(10);
const CLOCK_INTERVAL: Duration = Duration::from_millis(200);
/// A node that refuses this often in a row will not take it.
const MOST_REFUSALS: u32 = 5;
/// A clock that is still this near when its time is over goes to chrony: it steps it at once.
const LEFT_TO_CHRONY: f64 = 30.0;
/// To have a node switch seldom, on the reference machine.
const PACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Until chrony follows its upstream again, on the reference machine. A node may have to wait for
/// another one, which is its upstream.
const RESYNCING: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Fails until chrony follows an upstream, which it is made to ask now: after its clock was stepped
/// it starts anew, and may wait for many minutes before it asks by itself. One that has no upstream
/// or does not run is left alone. It waits for as long as a burst takes.
///
/// With `off=1` the clock is known to be wrong: chrony asks whatever it believed until then, and
/// corrects the clock in one step (`makestep` in its configuration is for its first updates alone).
const RESYNC: &str = r#"
command -v chronyc >/dev/null || exit 0
sources=$(chronyc -n sources 2>/dev/null) || exit 0
case $off$sources in
0*^\**) exit 0 ;;
*^*) ;;
*) exit 0 ;;
esac
chronyc burst 2/4 >/dev/null
chronyc waitsync 8 0 0 1 >/dev/null || exit 1
[ $off = 0 ] || chronyc makestep >/dev/null
"#;

/// Where Linux keeps what may be set of its scheduler.
const SCHEDULER: &str = "/sys/kernel/debug/sched";

/// Has an emulated node switch between its processes seldom: with each switch the emulator forgets
/// where its translations of the process's code are and which pages are where, and finds them again one
/// by one. A slice is 1.4 ms otherwise, in which a machine ten times slower does little. Decision 11
/// has what it brings. A node under KVM is left alone, and so is one whose kernel shows no such thing.
fn pace(scheduler: &str) -> String {
    format!(
        r#"
[ "$(systemd-detect-virt 2>/dev/null)" = qemu ] || exit 0
set_slice() {{ [ ! -w {scheduler}/base_slice_ns ] || echo 24000000 >{scheduler}/base_slice_ns; }}
[ ! -d {scheduler} ] || {{ set_slice; exit 0; }}
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null || exit 0
set_slice
umount /sys/kernel/debug
"#
    )
}

/// Room is taken without writing, which neither takes long nor fills the host's disk; only the last
/// bytes are written. Where `/` is in memory (probe-guest) the node would die of it.
const FILL: &str = r#"
if grep -q '^[^ ]* / \(rootfs\|tmpfs\|ramfs\|overlay\) ' /proc/mounts; then
    echo 'its root file system is in its memory' >&2; exit 1
fi
file=/.stackproof-fill
n=$(df -B1 --output=avail / | tail -n 1)
until [ "$n" -le 0 ] || fallocate -l "$n" $file 2>/dev/null; do n=$((n - 16777216)); done
cat /dev/zero >>$file 2>/dev/null
sync
[ "$(df -B1 --output=avail / | tail -n 1)" -eq 0 ] || { df / >&2; exit 1; }
"#;
const FREE: &str = "rm -f /.stackproof-fill && sync";
/// For either, on the reference machine.
const FILLING: Duration = Duration::from_secs(60);

/// Every machine of the lab as a node of the engine. Connections are made when they are used.
pub fn reach(lab: &Lab, speed: &Speed) -> Result<Vec<Node>> {
    lab.nodes().iter().map(|machine| reach_one(lab, machine, speed)).collect()
}

fn reach_one(lab: &Lab, machine: &crate::lab::Node, speed: &Speed) -> Result<Node> {
    let (network, address) = &machine.login;
    let leg = lab.leg(network).cloned().ok_or_else(|| {
        Error::input(format!("the network `{network}` has no `outside` address"))
            .at(&lab.spec().file, None)
            .hint("nodes are reached through a leg of ours: give the network one")
    })?;
    let connect = connector(leg, SocketAddrV4::new(*address, 22), speed, machine.vm.death());
    let name = machine.name();
    let key = ssh::Key::from_openssh(&lab.login_key().private_pem())?;
    let host_key = ssh::HostKey::Pinned(machine.host_key.clone());
    let shell = Ssh::new(name, lab.login_user(), key, host_key, connect)
        .handshake_within(speed.scale(HANDSHAKE))
        .silent_for(speed.scale(SILENCE).max(ssh::LONGEST_SILENCE));
    // Only Debian is provisioned today: the recipe `debian-13-node`.
    let mut node = Node::new(name, Family::Debian, Arc::new(shell)).death(machine.vm.death());
    for nic in &machine.spec.nics {
        if let Some(address) = nic.address {
            node = node.address(nic.network.as_str(), address);
        }
    }
    Ok(node)
}

/// Opens connections to a machine's SSH server, which may be about to start.
pub fn connector(leg: Leg, at: SocketAddrV4, speed: &Speed, death: Death) -> Connector {
    let patience = Patience::new(speed.clone(), Events::silent());
    Arc::new(move || {
        let (leg, patience, death) = (leg.clone(), patience.clone(), death.clone());
        Box::pin(async move {
            let stream = open(&leg, at, &patience, &death).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    })
}

async fn open(
    leg: &Leg,
    at: SocketAddrV4,
    patience: &Patience,
    death: &Death,
) -> Result<TcpStream> {
    let limit = patience.speed.scale(CONNECTING);
    let attempt = || async {
        match leg.try_connect(at, limit).await {
            Ok(stream) => Poll::Ready(stream),
            Err(refused @ ConnectFailure::Refused) => Poll::NotYet(refused.to_string()),
            Err(other) => Poll::Failed(other.into_error(at)),
        }
    };
    // The first has the whole limit, also where nothing answers for longer than a refusal is asked
    // again.
    match attempt().await {
        Poll::Ready(stream) => return Ok(stream),
        Poll::Failed(e) => return Err(e),
        Poll::NotYet(_) => {}
    }
    let what = format!("{at} to listen");
    let opened = patience.until(&what, LISTENING, REFUSED_AGAIN, death, attempt).await;
    let refused = ConnectFailure::Refused.into_error(at);
    opened.map_err(|e| match refused.hint_text() {
        Some(hint) if e.hint_text().is_none() => e.hint(hint),
        _ => e,
    })
}

/// Has the nodes give back what they keep and do not need, and waits until it has left the
/// machines.
pub async fn slim(lab: &Lab, nodes: &[Node], patience: &Patience) -> Result<()> {
    on(nodes, |_| true, "give back what it does not need", SLIMMING, SLIM, patience).await?;
    if lab.keeps_what_is_freed() {
        return on(nodes, |_| true, "blank its free memory", SLIMMING, BLANK, patience).await;
    }
    lab.settles(patience).await
}

/// Sets the clocks of nodes that no guest agent has set, which [`Lab::step_clocks`] named, until
/// they are right. Names those that are off by no more than chrony mends: [`resync`] has it do so.
pub async fn set_clocks(
    nodes: &[Node],
    which: &[String],
    patience: &Patience,
) -> Result<Vec<String>> {
    set_clocks_within(nodes, which, CLOCK_TIMEOUT, patience).await
}

async fn set_clocks_within(
    nodes: &[Node],
    which: &[String],
    nominal: Duration,
    patience: &Patience,
) -> Result<Vec<String>> {
    let these: Vec<&Node> = nodes.iter().filter(|n| which.contains(&n.name)).collect();
    let set = together(these.iter().map(|node| set_clock(node, nominal, patience))).await;
    let mut left = Vec::new();
    for (node, set) in these.iter().zip(set) {
        if let Some(offset) = set? {
            let message = format!("the clock of {} is {offset}: it is left to chrony", node.name);
            patience.events.warning(message);
            left.push(node.name.clone());
        }
    }
    Ok(left)
}

/// Sets one clock over SSH, again and again until it is right. Says how far it is off where it is
/// near enough for chrony when its time is over.
async fn set_clock(
    node: &Node,
    nominal: Duration,
    patience: &Patience,
) -> Result<Option<ClockOffset>> {
    let state = tokio::sync::Mutex::new((ClockAim::default(), None, 0));
    let what = format!("{} to set its clock", node.name);
    let quiet = Patience::new(patience.speed.clone(), Events::silent());
    let attempt = || async {
        let mut state = state.lock().await;
        let (aim, last, refusals) = &mut *state;
        // A command that hangs is given up, and another one sent.
        let set = quiet.within(&what, SETTING_TIMEOUT, &node.death, set_once(node, aim)).await;
        match set {
            Ok(None) => Poll::Ready(()),
            Ok(Some(offset)) => {
                (*last, *refusals) = (Some(offset), 0);
                Poll::NotYet(format!("its clock is {offset}"))
            }
            Err(e) if node.death.cause().is_some() => Poll::Failed(e),
            // What the node itself refuses; all else is slow or out of reach.
            Err(e) if e.kind() == Kind::Provision => {
                *refusals += 1;
                match *refusals == MOST_REFUSALS {
                    true => Poll::Failed(e.while_doing(&what)),
                    false => Poll::NotYet(e.to_string()),
                }
            }
            Err(e) => Poll::NotYet(e.to_string()),
        }
    };
    let set = patience.until(&what, nominal, CLOCK_INTERVAL, &node.death, attempt).await;
    let last = state.into_inner().1;
    match (set, last) {
        (Ok(()), _) => Ok(None),
        (Err(e), Some(offset))
            if e.cause() == Some(FailureCause::TimedOut)
                && offset.seconds().abs() <= LEFT_TO_CHRONY =>
        {
            Ok(Some(offset))
        }
        (Err(e), _) => Err(e),
    }
}

/// How far the clock is off after it was set; None where it is right.
async fn set_once(node: &Node, aim: &mut ClockAim) -> Result<Option<ClockOffset>> {
    // Connected first: a connection takes longer than a clock may be wrong.
    ran(node, ":".into()).await?;
    let target = aim.target();
    let (seconds, millis) = (target.as_secs(), target.subsec_millis());
    // Busybox's knows no fractions of a second.
    let set =
        format!("{{ date -u -s @{seconds}.{millis:03} 2>/dev/null || date -u -s @{seconds}; }}");
    ran(node, format!("{set} >/dev/null")).await?;
    let asked = since_epoch();
    let shown = ran(node, "date -u +%s".into()).await?;
    let shown = shown.trim().parse().map(Duration::from_secs);
    let shown = shown.map_err(|e| Error::lab("its clock shows no number").because(e))?;
    let within = (shown, shown + Duration::from_secs(1));
    Ok(aim.judge(asked, within, since_epoch()))
}

/// What a short script printed.
async fn ran(node: &Node, script: String) -> Result<String> {
    let out = node.shell.script(format!("{{ {script}\n}}\n")).await?;
    if out.status != 0 {
        let error = Error::provision(format!("`{script}` failed with status {}", out.status));
        return Err(error.evidence(out.stderr_tail(5)));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// What is done on nodes that go on, beside everything else: their schedulers are slowed down where
/// they are emulated, and their time servers asked anew. Given up when dropped.
#[derive(Debug, Default)]
pub struct Resync(JoinSet<()>);

/// Has chrony on the nodes ask its upstream after their clocks were stepped. Nobody needs to wait for
/// it: the clocks are right already, but for those of the nodes `off`, which it corrects.
pub fn resync(nodes: &[Node], off: &[String], patience: &Patience) -> Resync {
    let mut all = JoinSet::new();
    for node in nodes {
        let is_off = u8::from(off.contains(&node.name));
        let (node, patience) = (node.clone(), patience.clone());
        all.spawn(async move {
            let slow = node.shell.script(format!("{{ {}\n}}\n", pace(SCHEDULER)));
            let what = format!("{} to switch seldom", node.name);
            // What it is for works without it: nobody is told.
            let quiet = Patience::new(patience.speed.clone(), Events::silent());
            let _ = quiet.within(&what, PACE_TIMEOUT, &node.death, slow).await;
            let what = format!("{} to follow its time server", node.name);
            let ask = || async {
                match node.shell.script(format!("{{ off={is_off}\n{RESYNC}\n}}\n")).await {
                    Ok(out) if out.status == 0 => Poll::Ready(()),
                    Ok(_) => Poll::NotYet("chrony has no upstream that it trusts".into()),
                    Err(e) => Poll::NotYet(e.to_string()),
                }
            };
            let asked = patience.until(&what, RESYNCING, ASK_AGAIN, &node.death, ask).await;
            // Of a death others tell.
            if let (Err(e), None) = (asked, node.death.cause()) {
                patience.events.warning(e.to_string());
            }
        });
    }
    Resync(all)
}

impl Resync {
    /// Returns when nothing of it uses a connection any more.
    pub async fn stop(&mut self) {
        self.0.shutdown().await;
    }
}

/// Fills the disk of one node up to the last byte, or gives the room back.
pub async fn fill(nodes: &[Node], name: &str, full: bool, patience: &Patience) -> Result<()> {
    let (what, script) = match full {
        true => ("fill its disk", FILL),
        false => ("free its disk", FREE),
    };
    on(nodes, |n| n == name, what, FILLING, script, patience).await
}

/// Runs a script on some nodes, all at once; `what` says what they are to do.
async fn on(
    nodes: &[Node],
    which: impl Fn(&str) -> bool,
    what: &str,
    nominal: Duration,
    script: &str,
    patience: &Patience,
) -> Result<()> {
    let mut runs = JoinSet::new();
    for node in nodes.iter().filter(|n| which(&n.name)) {
        let (node, patience) = (node.clone(), patience.clone());
        let (what, script) = (format!("{} to {what}", node.name), format!("{{ {script}\n}}\n"));
        runs.spawn(async move {
            let run = async { node.shell.script(script).await };
            let out = patience.within(&what, nominal, &node.death, run).await?;
            if out.status == 0 {
                return Ok(());
            }
            let error = Error::lab(format!("waited for {what}, and it failed"));
            Err(error.evidence(out.stderr_tail(5)))
        });
    }
    runs.join_all().await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::resources::testing::root;
    use crate::engine::transport::Shell as _;
    use crate::event::{Event, Events, Level};
    use crate::lab::switch::Switch;
    use crate::wait::Life;

    /// A chronyc whose upstream is trusted from the `good`th burst on, and which notes what it is
    /// told.
    fn chronyc(sources: &str, good: usize) -> String {
        format!(
            r#"echo "$*" >>$ROOT/told
asked=$(grep -c burst $ROOT/told)
case "$*" in
*sources) echo 'MS Name/IP address'; [ "$asked" -lt {good} ] && echo '{sources}' || echo '^* 10.0.0.1' ;;
waitsync*) [ "$asked" -ge {good} ] ;;
esac
"#
        )
    }

    #[tokio::test]
    async fn an_emulated_node_is_slowed_down_and_one_under_kvm_left_alone() {
        for (runs_under, wanted) in [("qemu", "24000000\n"), ("kvm", "1400000\n")] {
            let root = root();
            root.fake("systemd-detect-virt", &format!("echo {runs_under}"));
            let scheduler = tempfile::tempdir().unwrap();
            let slice = scheduler.path().join("base_slice_ns");
            std::fs::write(&slice, "1400000\n").unwrap();
            let script = pace(scheduler.path().to_str().unwrap());
            let out = root.shell.script(format!("{{ {script}\n}}\n")).await.unwrap();
            assert_eq!(out.status, 0, "{out:?}");
            assert_eq!(std::fs::read_to_string(&slice).unwrap(), wanted);
        }
    }

    async fn told(script: &str) -> (String, Vec<Event>) {
        let root = root();
        root.fake("chronyc", script);
        // This host's scheduler is none of a test's business.
        root.fake("systemd-detect-virt", "echo none");
        let (events, mut seen) = Events::channel();
        let node = Node::new("a", Family::Debian, Arc::new(root.shell.clone()));
        let mut resync = resync(&[node], &[], &Patience::new(Speed::new(1.0), events));
        while resync.0.join_next().await.is_some() {}
        let mut all = Vec::new();
        while let Ok(stamped) = seen.try_recv() {
            all.push(stamped.event);
        }
        (std::fs::read_to_string(root.path("told")).unwrap_or_default(), all)
    }

    fn is_warning(event: &Event) -> bool {
        matches!(event, Event::Note { level: Level::Warning, .. })
    }

    fn two_legs() -> (Leg, Leg, SocketAddrV4) {
        let network = Switch::new().network("management");
        let [ours, theirs] = [1, 11].map(|n| Leg::new(&network, [192, 168, 103, n].into(), 24));
        let at = SocketAddrV4::new(theirs.address(), 22);
        (ours, theirs, at)
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_boots_is_not_believed_its_first_refusals() {
        let (ours, theirs, at) = two_legs();
        let connect = connector(ours, at, &Speed::new(1.0), Death::never());
        let listens = async {
            tokio::time::sleep(LISTENING / 2).await;
            theirs.listen(22).await.unwrap().accept().await
        };
        let (stream, _accepted) = tokio::join!(connect(), listens);
        stream.map(drop).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_listens_is_told_with_its_refusal() {
        let (ours, _theirs, at) = two_legs();
        let connect = connector(ours, at, &Speed::new(1.0), Death::never());
        let e = connect().await.map(drop).unwrap_err();
        assert!(e.message().contains("192.168.103.11:22 to listen"), "{e}");
        assert!(e.evidence_lines().concat().contains("connection refused"), "{e:?}");
        assert!(e.hint_text().unwrap().contains("the service runs"), "{e:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_dead_machine_to_listen() {
        let (ours, _theirs, at) = two_legs();
        let (life, death) = Life::new();
        life.ends("QEMU of a was killed by signal 9");
        let connect = connector(ours, at, &Speed::new(1.0), death);
        let e = connect().await.map(drop).unwrap_err();
        assert!(e.message().contains("QEMU of a was killed"), "{e}");
    }

    /// A `date` with a clock of its own, which `sets` knows how to set to `$now`.
    fn date(sets: &str) -> String {
        format!(
            r#"
real=$(PATH=${{PATH#*:}} date +%s) file={{}}/clock
case $2 in
-s) now=${{3#@}}; now=${{now%.*}}; {sets} ;;
*) echo $((real + $(cat $file 2>/dev/null || echo -86400))) ;;
esac
"#
        )
    }

    /// What came of setting the clock of a node with such a `date`, and what was said of it.
    async fn clock_set(sets: &str, nominal: Duration) -> (Result<Vec<String>>, Vec<Event>) {
        let root = root();
        let folder = tempfile::tempdir().unwrap();
        let script = date(sets).replace("{}", folder.path().to_str().unwrap());
        root.fake("date", &script);
        let node = Node::new("a", Family::Debian, Arc::new(root.shell.clone()));
        let (events, mut seen) = Events::channel();
        let patience = Patience::new(Speed::new(1.0), events);
        let set = set_clocks_within(&[node], &["a".into()], nominal, &patience).await;
        let mut all = Vec::new();
        while let Ok(stamped) = seen.try_recv() {
            all.push(stamped.event);
        }
        (set, all)
    }

    const LONG: Duration = Duration::from_secs(200);
    const SET: &str = "echo $((now - $(PATH=${PATH#*:} date +%s))) >$file";

    #[tokio::test]
    async fn clock_set_late_once_is_set_again() {
        // What was asked for is old when it is done, the first time.
        let late = format!("[ -e $file.late ] || {{ : >$file.late; sleep 4; }}; {SET}");
        let (set, events) = clock_set(&late, LONG).await;
        assert_eq!(set.unwrap(), [] as [String; 0]);
        assert!(!events.iter().any(is_warning), "{events:?}");
    }

    #[tokio::test]
    async fn clock_without_fractions_of_a_second_is_set() {
        let (set, _) = clock_set(&format!("[ $3 = @$now ] || exit 1; {SET}"), LONG).await;
        assert_eq!(set.unwrap(), [] as [String; 0]);
    }

    #[tokio::test]
    async fn clock_that_refuses_fails_before_its_deadline() {
        let (set, _) = clock_set("echo 'not permitted' >&2; exit 1", LONG).await;
        let e = set.unwrap_err();
        assert_eq!((e.kind(), e.cause()), (Kind::Provision, None), "{e}");
        assert_eq!(e.evidence_lines(), ["not permitted"]);
    }

    #[tokio::test]
    async fn near_clock_is_left_to_chrony_and_a_far_one_is_an_error() {
        // Both are over when their time is: long enough for one look on a busy machine.
        let stuck =
            async |off: i32| clock_set(&format!("echo {off} >$file"), Duration::from_secs(6)).await;
        let ((near, events), (far, _)) = tokio::join!(stuck(-7), stuck(-700));
        assert_eq!(near.unwrap(), ["a"]);
        assert!(events.iter().any(is_warning));
        let e = far.unwrap_err();
        assert!(e.is_blameless(), "{e}");
        assert!(e.evidence_lines().concat().contains(" s off"), "{e:?}");
    }

    #[tokio::test]
    async fn clock_known_to_be_off_is_stepped_by_chrony() {
        let root = root();
        root.fake("chronyc", &chronyc("^* 10.0.0.1", 1));
        root.fake("systemd-detect-virt", "echo none");
        let node = Node::new("a", Family::Debian, Arc::new(root.shell.clone()));
        let patience = Patience::new(Speed::new(1.0), Events::silent());
        let mut resync = resync(&[node], &["a".into()], &patience);
        while resync.0.join_next().await.is_some() {}
        let told = std::fs::read_to_string(root.path("told")).unwrap();
        assert!(told.ends_with("makestep\n"), "{told}");
    }

    #[tokio::test]
    async fn chrony_is_asked_until_it_follows_its_upstream() {
        let (told, events) = told(&chronyc("^? 10.0.0.1", 2)).await;
        assert_eq!(told.lines().filter(|l| l.contains("burst")).count(), 2, "{told}");
        let [Event::Waited { ok: true, .. }] = events[..] else { panic!("{events:?}") };
    }

    #[tokio::test]
    async fn who_follows_an_upstream_or_has_none_is_left_alone() {
        for sources in ["^* 10.0.0.1", ""] {
            let (told, events) = told(&chronyc(sources, 1)).await;
            assert_eq!(told, "-n sources\n", "with `{sources}`");
            assert!(!events.iter().any(is_warning), "{events:?}");
        }
    }

    #[tokio::test]
    async fn a_chrony_that_does_not_run_is_left_alone() {
        let (_, events) = told("echo 506 Cannot talk to daemon; exit 1\n").await;
        assert!(!events.iter().any(is_warning), "{events:?}");
    }
}
