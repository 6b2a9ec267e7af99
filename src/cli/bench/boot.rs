//! From power on to the answer of a first command in a small guest, beside others who start small
//! guests, with the same kernel and accelerator.

use super::guests::{self, Peers};
use super::peers::{ANSWER, COMMAND, MEMORY, Peer, Race};
use super::{Host, Number, TRIES};
use crate::cli::record::NotRun;
use crate::cli::root::Root;
use crate::cli::session::Work;
use crate::cluster::{host, images, runs};
use crate::engine::ssh::{Client, HostKey, Key};
use crate::error::{Error, Result};
use crate::images::build::Built;
use crate::images::manifest::Manifest;
use crate::images::store::Store;
use crate::lab::accel::Accel;
use crate::lab::spec::LabSpec;
use crate::lab::{BOOTS, BootImage, Lab, LabOptions};
use std::net::SocketAddrV4;
use std::path::Path;
use std::time::{Duration, Instant};

const ROW: &str = "power on to first command";

pub const NOT_BUILT: &str = "it is not built: `stackproof images build probe-guest`";

/// The first command, from the connection to its answer, on the reference machine.
const ANSWERS: Duration = Duration::from_secs(20);

/// Rows, and what could not be compared.
pub async fn measure(work: &Work, host: &Host) -> Result<(Vec<Number>, Vec<NotRun>)> {
    let store = Store::open(&work.env.store)?;
    let root = Root::find(&work.env)?;
    let options = LabOptions {
        run_root: runs(&work.env.store),
        slots: runs(&work.env.store),
        hypervisor: host.hypervisor.clone(),
        accel: host.accel,
        boots: BOOTS,
        keep: false,
        logs: None,
    };
    let spec = LabSpec::parse(Path::new("bench.toml"), &lab())?;
    let _room = host::reserve(work, &spec, false).await?;

    let (mut numbers, mut not_run) = (Vec::new(), Vec::new());
    let cloud = Manifest::load(&root.images().join("probe-guest.toml"))?;
    match images::built(work, &store, &cloud)? {
        Some(built) => {
            let mut tries = Tries::default();
            for _ in 0..TRIES {
                tries.ours(ours(work, &spec, &image(&built)?, &options).await?);
            }
            let row = format!("{ROW}, probe-guest");
            numbers.extend(tries.ours.map(|seconds| Number::new(row, seconds, "s")));
        }
        None => {
            not_run.push(NotRun { name: format!("{ROW}, probe-guest"), reason: NOT_BUILT.into() })
        }
    }

    // The mirror may be away: that costs the comparison and nothing else.
    let guests = async {
        let ours = guests::ours(work, &store, &root).await?;
        let peers = guests::peers(work, &store, &root, &ours).await?;
        let leases = [store.lease(&ours.dir)?, store.lease(&peers.shell)?];
        Ok::<_, Error>((ours, peers, leases))
    };
    match guests.await {
        Ok((built, peers, _leases)) => {
            let (rows, missing) = beside(work, &spec, &built, &peers, &options).await?;
            numbers.extend(rows);
            not_run.extend(missing);
        }
        Err(e) => not_run.extend(Peer::ALL.map(|peer| NotRun {
            name: format!("{ROW}: {}", peer.name()),
            reason: format!("its guest cannot be made: {e}"),
        })),
    }
    Ok((numbers, not_run))
}

/// All of them in turn, so that a busy moment of the machine meets everyone.
async fn beside(
    work: &Work,
    spec: &LabSpec,
    built: &Built,
    guests: &Peers,
    options: &LabOptions,
) -> Result<(Vec<Number>, Vec<NotRun>)> {
    let (image, patience) = (image(built)?, work.patience());
    // The guest that autopkgtest needs has two serial ports.
    let append = image.append.replace("8250.nr_uarts=1", "8250.nr_uarts=2");
    let race = Race {
        hypervisor: &options.hypervisor,
        accel: options.accel,
        guests,
        append: &append,
        patience: &patience,
    };
    let mut tries = Tries::default();
    for _ in 0..TRIES {
        tries.ours(ours(work, spec, &image, options).await?);
        for peer in Peer::ALL {
            if !peer.is_installed() {
                tries.peer(peer, Err(peer.install().into()));
            } else if tries.may_run(peer) {
                let ran = race.run(peer).await;
                tries.peer(peer, ran.map_err(|e| reason(&e)));
            }
        }
    }
    Ok(tries.rows(&guests.release, options.accel))
}

/// An error in one line, with the last that was seen.
pub fn reason(error: &Error) -> String {
    match error.evidence_lines().last() {
        Some(last) => format!("{error} ({last})"),
        None => error.to_string(),
    }
}

/// The best of the tries.
#[derive(Debug, Default)]
struct Tries {
    ours: Option<f64>,
    peers: Vec<(Peer, std::result::Result<f64, String>)>,
}

impl Tries {
    fn ours(&mut self, seconds: f64) {
        self.ours = Some(self.ours.map_or(seconds, |best| best.min(seconds)));
    }

    fn may_run(&self, peer: Peer) -> bool {
        !self.peers.iter().any(|(p, out)| *p == peer && out.is_err())
    }

    /// One failure is for good: the next try would fail as late.
    fn peer(&mut self, peer: Peer, out: std::result::Result<f64, String>) {
        match self.peers.iter_mut().find(|(p, _)| *p == peer) {
            None => self.peers.push((peer, out)),
            Some((_, best)) => match (&*best, out) {
                (Ok(a), Ok(b)) => *best = Ok(a.min(b)),
                (Ok(_), Err(e)) => *best = Err(e),
                (Err(_), _) => {}
            },
        }
    }

    fn rows(self, release: &str, accel: Accel) -> (Vec<Number>, Vec<NotRun>) {
        let (mut numbers, mut not_run) = (Vec::new(), Vec::new());
        let name = format!("{ROW}, Linux {release}, {accel}");
        for (peer, out) in self.peers {
            match (out, self.ours) {
                (Ok(theirs), Some(ours)) => {
                    numbers.push(Number::new(&name, ours, "s").beside(peer.name(), theirs));
                }
                (Ok(_), None) => {}
                (Err(reason), _) => {
                    not_run.push(NotRun { name: format!("{ROW}: {}", peer.name()), reason });
                }
            }
        }
        if let (true, Some(ours)) = (numbers.is_empty(), self.ours) {
            numbers.push(Number::new(&name, ours, "s"));
        }
        (numbers, not_run)
    }
}

/// One small guest, as every lab has it: disk, seed, a NIC on our switch, SSH.
fn lab() -> String {
    format!(
        "name = \"bench\"\n\
         [networks.management]\nsubnet = \"192.168.103.0/24\"\noutside = \"192.168.103.1\"\n\
         [nodes.a]\nimage = \"probe-guest\"\nmemory = \"{MEMORY}MiB\"\ncpus = 1\n\
         roles = [\"controller\", \"network\", \"compute\"]\n\
         [[nodes.a.nics]]\nnetwork = \"management\"\naddress = \"192.168.103.11\"\n"
    )
}

fn image(built: &Built) -> Result<BootImage> {
    Ok(BootImage {
        disk: built.disk(),
        kernel: Some(built.kernel()),
        initrd: Some(built.initrd()),
        append: built.cmdline()?,
    })
}

/// Seconds from nothing to the answer of a command over SSH.
async fn ours(work: &Work, spec: &LabSpec, image: &BootImage, options: &LabOptions) -> Result<f64> {
    let patience = work.patience();
    let start = Instant::now();
    let lab = Lab::start(spec, |_| Ok(image.clone()), options, &patience, &work.redactor).await?;
    let node = &lab.nodes()[0];
    let (network, address) = &node.login;
    let leg = lab.leg(network).ok_or_else(|| Error::internal("the lab has no leg"))?;
    let key = Key::from_openssh(&lab.login_key().private_pem())?;
    let first = async {
        let at = SocketAddrV4::new(*address, 22);
        let stream = leg.connect(at, patience.speed.scale(ANSWERS)).await?;
        let pinned = HostKey::Pinned(node.host_key.clone());
        let client = Client::connect(stream, lab.login_user(), &key, pinned).await?;
        client.run(COMMAND, "").await
    };
    let out = patience.within("the first command", ANSWERS, &node.vm.death(), first).await?;
    let seconds = start.elapsed().as_secs_f64();
    if String::from_utf8_lossy(&out.stdout).trim_end() != ANSWER {
        return Err(
            Error::lab("the first command gave another answer").evidence(out.stderr_tail(5))
        );
    }
    lab.stop().await?;
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_gets_a_row_with_the_best_of_its_tries() {
        let mut tries = Tries::default();
        for (ours, vng, adt) in [(4.0, 9.0, 20.0), (3.0, 6.0, 30.0)] {
            tries.ours(ours);
            tries.peer(Peer::VirtmeNg, Ok(vng));
            tries.peer(Peer::Autopkgtest, Ok(adt));
        }
        let (rows, not_run) = tries.rows("6.12", Accel::Tcg);
        assert!(not_run.is_empty());
        let seen: Vec<_> = rows.iter().map(|r| (r.value, r.peer_value, r.ratio)).collect();
        assert_eq!(seen, [(3.0, Some(6.0), Some(0.5)), (3.0, Some(20.0), Some(0.15))]);
        assert_eq!(rows[0].name, "power on to first command, Linux 6.12, TCG");
    }

    #[test]
    fn a_peer_that_failed_once_is_not_run_and_ours_keeps_its_row() {
        let mut tries = Tries::default();
        tries.ours(3.0);
        tries.peer(Peer::VirtmeNg, Err(Peer::VirtmeNg.install().into()));
        tries.peer(Peer::Autopkgtest, Ok(9.0));
        tries.peer(Peer::Autopkgtest, Err("it ended instead".into()));
        assert!(!tries.may_run(Peer::VirtmeNg) && !tries.may_run(Peer::Autopkgtest));
        let (rows, not_run) = tries.rows("6.12", Accel::Kvm);
        assert_eq!((rows.len(), rows[0].ratio), (1, None));
        assert!(not_run[0].reason.contains("pip install virtme-ng"), "{}", not_run[0].reason);
        assert_eq!(not_run[1].reason, "it ended instead");
    }

    #[test]
    fn the_lab_of_the_race_is_a_good_one() {
        LabSpec::parse(Path::new("bench.toml"), &lab()).unwrap();
    }
}
