//! Where the owner of a lab meets the lab's rooms: one function for each thing that it asks of them.

use super::fault::{NodeGroup, PortName};
use super::status::Heartbeats;
use crate::cluster::credentials::Cloud;
use crate::cluster::node_tasks::{self, Resync};
use crate::error::{Context, Error, Kind, Result};
use crate::lab::admission::{self, Room};
use crate::lab::checkpoint::{After, Checkpoint, Notes};
use crate::lab::spec::LabSpec;
use crate::lab::switch::{Direction, Impairment};
use crate::lab::{Lab, LabOptions};
use crate::secret::{Redactor, Secret};
use crate::wait::Patience;
use serde_json::Value;
use std::io::{self, Write};
use std::os::unix::net::UnixStream as Socket;
use std::path::Path;
use std::pin::Pin;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// `into` does not exist yet and holds secrets, as `notes` do. The lab goes on.
pub async fn checkpoint(
    lab: &mut Lab,
    resync: &mut Resync,
    into: &Path,
    notes: Value,
    patience: &Patience,
) -> Result<()> {
    // Said before a node that stands still is asked for anything.
    lab.none_frozen().await?;
    // A restored node would try to go on with its connections.
    resync.stop().await;
    if let Err(e) = slim(lab, patience).await {
        // It is larger then, and as good.
        patience.events.warning(format!("the checkpoint holds more than it needs: {e}"));
    }
    let saved = lab.checkpoint(into, Notes(notes), After::GoOn, patience).await.map(drop);
    if saved.is_err() && lab.death().cause().is_some() {
        return saved;
    }
    // They stood still for as long as their memory took to be written, also where that failed.
    let unstepped = lab.step_clocks(patience).await;
    *resync = set_clocks(lab, unstepped, patience).await;
    saved
}

async fn slim(lab: &Lab, patience: &Patience) -> Result<()> {
    let reached = node_tasks::reach(lab, &patience.speed)?;
    node_tasks::slim(lab, &reached, patience).await
}

/// The clocks that no guest agent has set; then all are kept right by their time servers again. A lab
/// with a wrong clock is told of and is a lab still.
async fn set_clocks(lab: &Lab, unstepped: Result<Vec<String>>, patience: &Patience) -> Resync {
    let not_set = |e: Error| {
        let message = format!("a clock stood still with the lab and was not set: {e}");
        patience.events.warning(message);
    };
    let reached = match node_tasks::reach(lab, &patience.speed) {
        Ok(reached) => reached,
        Err(e) => {
            not_set(e);
            return Resync::default();
        }
    };
    let all = || reached.iter().map(|n| n.name.clone()).collect();
    let set = async { node_tasks::set_clocks(&reached, &unstepped?, patience).await };
    // Which of them is wrong is not known then: chrony corrects what it finds.
    let off = set.await.unwrap_or_else(|e| {
        not_set(e);
        all()
    });
    node_tasks::resync(&reached, &off, patience)
}

/// What lab a checkpoint is of.
pub fn spec(from: &Path) -> Result<LabSpec> {
    Checkpoint::open(from).map(|saved| saved.spec().clone())
}

/// Whether a checkpoint is whole and fits this host, before anything is given up for it.
pub fn inspect(from: &Path, options: &LabOptions) -> Result<()> {
    Checkpoint::open(from)?.check(options)
}

/// Whether a checkpoint may take the place of the running lab `here`: nothing may be ended for one
/// that could not go on.
pub fn replaces(from: &Path, here: &Lab, options: &LabOptions) -> Result<()> {
    let saved = Checkpoint::open(from)?;
    if !saved.spec().same_lab(here.spec()) {
        let (theirs, ours) = (&saved.spec().name, &here.spec().name);
        let message = format!("the checkpoint is of another lab ({theirs}) than this one ({ours})");
        return Err(Error::input(message).at(from, None).hint(format!(
            "start it as a lab of its own: `stackproof lab up --restore {}`",
            from.display()
        )));
    }
    saved.check(options)?;
    let mut room = Room::look(here.dir())?;
    // What the machines of today hold will be free.
    room.memory += here.nodes().iter().filter_map(|n| n.vm.resident().ok()).sum::<u64>();
    admission::check(saved.spec(), room, here.dir())
}

/// What became of a checkpoint.
pub struct Back {
    pub lab: Lab,
    /// Has answered, where the checkpoint has one.
    pub cloud: Option<Cloud>,
    pub heartbeats: Option<watch::Receiver<Heartbeats>>,
    /// Still done on the nodes beside that.
    pub resync: Resync,
}

/// The lab runs, and its cloud has been asked; the heartbeats come later.
pub async fn restore(
    from: &Path,
    options: &LabOptions,
    patience: &Patience,
    redactor: &Redactor,
) -> Result<Back> {
    let restored = Lab::restore(from, options, patience, redactor).await?;
    hide_strings(&restored.notes.0["secrets"], redactor);
    let (lab, cloud) = (restored.lab, Cloud::of_notes(&restored.notes.0));
    let clocks = async { set_clocks(&lab, lab.step_clocks(patience).await, patience).await };
    let answer = async {
        let cloud = cloud.as_ref()?;
        cloud.hide_in(redactor);
        let woken = wakes(&lab, cloud, patience, redactor).await;
        Some(woken.unwrap_or_else(|e| {
            // The lab is there to look why.
            let message = format!("the restored cloud does not answer: {e}");
            patience.events.warning(message.as_str());
            watch::channel(Heartbeats::Missed(redactor.clean(&message))).1
        }))
    };
    // Who answers too early is asked again.
    let (resync, heartbeats) = tokio::join!(clocks, answer);
    Ok(Back { lab, cloud, heartbeats, resync })
}

/// Waits for the first answer. The heartbeats take longer and are told when they are there.
async fn wakes(
    lab: &Lab,
    cloud: &Cloud,
    patience: &Patience,
    redactor: &Redactor,
) -> Result<watch::Receiver<Heartbeats>> {
    let sleeper = cloud.asleep(lab)?;
    let session = sleeper.token(patience, redactor).await?;
    let (patience, redactor) = (patience.clone(), redactor.clone());
    let (tell, told) = watch::channel(Heartbeats::Awaited(Vec::new()));
    tokio::spawn(async move {
        let silent = |names: &[String]| drop(tell.send(Heartbeats::Awaited(names.to_vec())));
        let heard = sleeper.heartbeats(&session, &patience, silent).await;
        let _ = tell.send(match heard {
            Ok(all) => {
                patience.events.info(format!("all {all} agents and services were heard"));
                Heartbeats::Heard(all)
            }
            Err(e) => {
                let message = redactor.clean(&e.to_string());
                if sleeper.death.cause().is_none() {
                    patience.events.warning(message.as_str());
                }
                Heartbeats::Missed(message)
            }
        });
    });
    Ok(told)
}

/// Every text in it, whatever its shape: who made the notes knows what they mean, and all of it is
/// secret.
fn hide_strings(value: &Value, redactor: &Redactor) {
    match value {
        Value::String(text) => redactor.add(&Secret::new(text.as_str())),
        Value::Array(all) => all.iter().for_each(|v| hide_strings(v, redactor)),
        Value::Object(all) => all.values().for_each(|v| hide_strings(v, redactor)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Nodes of different groups do not hear each other on the network.
pub fn partition(lab: &Lab, network: &str, groups: &[NodeGroup]) -> Result<()> {
    let of = |group: &NodeGroup| group.0.iter().map(|n| format!("{n}/{network}")).collect();
    let groups: Vec<Vec<String>> = groups.iter().map(of).collect();
    lab.switch().find(network)?.partition(&groups)
}

/// Impairs what comes from one port of a network, or from all.
pub fn disturb(lab: &Lab, at: &PortName, impairment: Impairment, seed: u64) -> Result<()> {
    let found = lab.switch().find(&at.network)?;
    // The seed is the whole lab's: the fate of a frame follows from it, its port and its number.
    lab.switch().set_seed(seed);
    if at.node.is_some() {
        return found.set_fault(&at.to_string(), Direction::From, Some(impairment));
    }
    found.set_fault_everywhere(Direction::From, Some(impairment));
    Ok(())
}

/// Ends partitions and disturbances of a network.
pub fn clear(lab: &Lab, network: &str) -> Result<()> {
    let found = lab.switch().find(network)?;
    found.heal();
    found.set_fault_everywhere(Direction::From, None);
    Ok(())
}

/// Writes pcapng into a client's stream until either ends.
pub type Writer = Box<dyn FnOnce(UnixStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Captures a network, or one node's port on it, from the moment the writer is run.
pub fn capture(lab: &Lab, network: &str, node: Option<&str>) -> Result<Writer> {
    let found = lab.switch().find(network)?;
    let port = node.map(|node| format!("{node}/{network}"));
    if let Some(port) = &port {
        // Said now, while the client still waits for an answer.
        found.counters(port)?;
    }
    Ok(Box::new(move |stream| {
        Box::pin(async move {
            let run = async {
                let doing = || "a client's socket".to_owned();
                let socket = stream.into_std().doing(Kind::Host, doing)?;
                let client = socket.try_clone().doing(Kind::Host, doing)?;
                let client = UnixStream::from_std(client).doing(Kind::Host, doing)?;
                let name = Path::new("the client");
                let capture = found.capture_into(port.as_deref(), Patient(socket), name, None)?;
                gone(&client).await;
                capture.finish().await
            };
            // A client that leaves in the middle of a frame is no news.
            let _ = run.await;
        })
    }))
}

/// Resolves when the client has closed its end. It has nothing to say.
async fn gone(client: &UnixStream) {
    let mut rest = [0; 64];
    loop {
        if client.readable().await.is_err() {
            return;
        }
        match client.try_read(&mut rest) {
            Ok(1..) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// A socket that does not block, written to as if it did: its other half is read by the runtime.
struct Patient(Socket);

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        use rustix::event::{PollFd, PollFlags, poll};
        loop {
            match self.0.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let mut ready = [PollFd::new(&self.0, PollFlags::OUT)];
                    match poll(&mut ready, None) {
                        Ok(_) | Err(rustix::io::Errno::INTR) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                out => return out,
            }
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_secret_of_a_checkpoints_notes_is_hidden() {
        let redactor = Redactor::default();
        let notes = serde_json::json!({
            "secrets": { "admin": "admin-0123456789", "keys": [{ "fernet": "fernet-0123456789" }] },
            "cloud": null,
        });
        hide_strings(&notes["secrets"], &redactor);
        let shown = redactor.clean("admin-0123456789 fernet-0123456789 nova");
        assert_eq!(shown, "[secret] [secret] nova");
        hide_strings(&notes["nothing"], &redactor);
        assert_eq!(redactor.len(), 2);
    }

    #[test]
    fn a_patient_writer_waits_for_a_slow_reader_and_ends_with_it() {
        let (ours, theirs) = Socket::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let all = vec![7u8; 4 << 20];
        let reader = std::thread::spawn(move || {
            let (mut theirs, mut seen) = (theirs, 0);
            let mut piece = vec![0; 65536];
            while seen < 2 << 20 {
                seen += std::io::Read::read(&mut theirs, &mut piece).unwrap();
            }
            seen
        });
        let out = Patient(ours).write_all(&all);
        assert!(reader.join().unwrap() >= 2 << 20);
        assert!(out.is_err(), "the reader has left in the middle");
    }
}
