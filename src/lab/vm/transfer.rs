//! A machine's state on its way out of one QEMU and into another: the guest stands still, its disk
//! is frozen, its memory goes to a file or comes from one.

use super::Vm;
use crate::error::{Context, Error, Kind, Result};
use crate::lab::disk::{Chain, read_header};
use crate::lab::hypervisor::Hypervisor;
use crate::lab::qemu;
use crate::lab::spec::{GIB, KIB};
use crate::wait::Poll;
use qapi_qmp::{MigrationCapability, MigrationInfo, MigrationStatus};
use serde_json::{Value, json};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

/// A guest is stopped when its disks are quiet.
const STOPS: Duration = Duration::from_secs(20);

/// For the state of the devices, and for each GiB of memory, which may go to a slow disk.
const DEVICES: Duration = Duration::from_secs(10);
const PER_GIB: Duration = Duration::from_secs(10);

/// A transfer that may send next to nothing does so every tenth of a second: so many looks that see
/// the same are in a pause of it. More would fit into one on an idle machine, and on a busy one, where
/// each look takes longer, never.
const PAUSES: Duration = Duration::from_secs(1);
const ALIKE: u32 = 3;

/// Between two questions how far it is: short beside a restore of a second.
const LOOK: Duration = Duration::from_millis(10);

/// Threads that move memory: one each processor. The measurements are in decision 5.
const CHANNELS: std::ops::RangeInclusive<usize> = 2..=8;

/// Bytes a second: no limit. QEMU's own is 128 MiB/s, made for networks.
const UNLIMITED: u64 = 1 << 40;

/// The least that is a limit: QEMU reckons in tenths of a second.
const LEAST: u64 = 10;

impl Vm {
    /// Stops the guest between two instructions. Its memory and disks stand still when this is
    /// done; [`Vm::run`] lets it go on.
    pub async fn pause(&self) -> Result<()> {
        let stopped = self.qmp.call_within(&qapi_qmp::stop {}, STOPS).await;
        stopped.map(drop).map_err(|e| self.explain(e))
    }

    /// Freezes the first disk of a paused machine: what was the top of `chain` is not written any
    /// more, and a new layer lies on it. Returns the chain as it is then.
    pub async fn freeze_disk(&self, hypervisor: &Hypervisor, chain: &Chain) -> Result<Chain> {
        let grown = chain.grown();
        let (below, above) = (chain.node(&qemu::disk_node(0)), grown.node(&qemu::disk_node(0)));
        let size = read_header(&chain.top())?.virtual_size;
        hypervisor.layer(chain, &grown, size).await?;
        let options = qemu::layer(&above, &grown.top());
        self.ask("blockdev-add", options).await?;
        let snapshot = json!({ "node": below, "overlay": above });
        if let Err(e) = self.ask("blockdev-snapshot", snapshot).await {
            // So that a second try finds its name free.
            let _ = self.ask("blockdev-del", json!({ "node-name": above })).await;
            return Err(e);
        }
        Ok(grown)
    }

    /// Writes the memory of a paused machine and the state of its devices into a new file that only
    /// we can read. Pages of zeros take no room in it.
    ///
    /// One that fails is over when this returns: a migration that went on would stop the guest for
    /// good at its end, whatever was done with the guest in the meantime.
    pub async fn save_memory(&self, file: &Path) -> Result<()> {
        self.save_within(file, self.nominal(), UNLIMITED).await
    }

    /// `bandwidth` is in bytes a second.
    pub(super) async fn save_within(
        &self,
        file: &Path,
        nominal: Duration,
        bandwidth: u64,
    ) -> Result<()> {
        let mut new = std::fs::OpenOptions::new();
        new.write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)
            .doing(Kind::Host, || "cannot make the file for a machine's memory".into())
            .map_err(|e| e.at(file, None))?;
        self.set_up_transfer(bandwidth).await?;
        self.ask("migrate", json!({ "channels": channel(file) })).await?;
        let saved = self.transferred("saving its memory", nominal).await;
        match saved {
            Err(e) if self.death().cause().is_none() => match self.cancel_transfer().await {
                Ok(()) => Err(e),
                Err(left) => Err(e.evidence([format!(
                    "it could not be cancelled either, and the guest will stop when it ends: {left}"
                )])),
            },
            saved => saved,
        }
    }

    /// Ends a transfer that is under way, and waits until it has ended, however it does.
    async fn cancel_transfer(&self) -> Result<()> {
        // Without a pause it is cancelled all the same.
        let _ = self.quiet_transfer().await;
        self.ask("migrate_cancel", json!({})).await?;
        let look = || async {
            match self.qmp.call(&qapi_qmp::query_migrate {}).await {
                Ok(info) => match info.status {
                    None
                    | Some(
                        MigrationStatus::none
                        | MigrationStatus::completed
                        | MigrationStatus::failed
                        | MigrationStatus::cancelled,
                    ) => Poll::Ready(()),
                    status => Poll::NotYet(format!("{status:?}")),
                },
                Err(e) => Poll::Failed(e),
            }
        };
        let what = format!("{}: its memory's transfer to be cancelled", self.name);
        self.patience.until(&what, STOPS, LOOK, &self.death(), look).await
    }

    /// Waits for a moment in which a transfer sends nothing. QEMU (10.0) frees what its channels
    /// write to before it ends them: cancelled while they are at work, it may crash.
    async fn quiet_transfer(&self) -> Result<()> {
        let least = json!({ "max-bandwidth": LEAST });
        self.qmp.call_raw("migrate-set-parameters", least, PAUSES).await?;
        let seen = Mutex::new((None, 0));
        let look = || async {
            match self.qmp.call(&qapi_qmp::query_migrate {}).await {
                Ok(info) => {
                    let ram = info.ram.map(|ram| (ram.transferred, ram.duplicate, ram.remaining));
                    let mut seen = seen.lock().expect("nobody panics here");
                    let same = if seen.0 == Some(ram) { seen.1 + 1 } else { 1 };
                    *seen = (Some(ram), same);
                    if same == ALIKE {
                        Poll::Ready(())
                    } else {
                        Poll::NotYet(format!("{:?}, {ram:?}", info.status))
                    }
                }
                Err(e) => Poll::Failed(e),
            }
        };
        let what = format!("{}: a pause in its memory's transfer", self.name);
        self.patience.until(&what, PAUSES, LOOK, &self.death(), look).await
    }

    /// The way back, into a machine that was started to wait for it. The guest stands still
    /// afterwards, at the instruction that it was stopped before.
    pub async fn load_memory(&self, file: &Path) -> Result<()> {
        self.set_up_transfer(UNLIMITED).await?;
        // So that QEMU lives to tell what went wrong.
        let arguments = json!({ "channels": channel(file), "exit-on-error": false });
        self.ask("migrate-incoming", arguments).await?;
        self.transferred("restoring its memory", self.nominal()).await?;
        let status =
            self.qmp.call(&qapi_qmp::query_status {}).await.map_err(|e| self.explain(e))?;
        if status.running {
            return Err(self.explain(Error::internal("it was not restored standing still")));
        }
        Ok(())
    }

    /// Whether the guest stands still because somebody asked for it.
    pub async fn is_paused(&self) -> Result<bool> {
        let status = self.qmp.call(&qapi_qmp::query_status {}).await;
        let status = status.map_err(|e| self.explain(e))?.status;
        Ok(status == qapi_qmp::RunState::paused)
    }

    /// Whether a guest agent has opened its port.
    pub async fn has_agent(&self) -> Result<bool> {
        let devices = self.qmp.call(&qapi_qmp::query_chardev {}).await;
        let devices = devices.map_err(|e| self.explain(e))?;
        Ok(devices.iter().any(|d| d.label == qemu::AGENT && d.frontend_open))
    }

    /// The memory that is the machine's own, in bytes: not what it sees of a mapped file.
    pub fn resident(&self) -> Result<u64> {
        let file = format!("/proc/{}/status", self.pid());
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        let kib = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
        let untold = || {
            Error::lab(format!("cannot read how much memory {} takes", self.name)).at(&file, None)
        };
        Ok(kib.ok_or_else(untold)? * KIB)
    }

    /// For all of its memory and the state of its devices.
    fn nominal(&self) -> Duration {
        DEVICES + PER_GIB.mul_f64(self.memory as f64 / GIB as f64)
    }

    async fn set_up_transfer(&self, bandwidth: u64) -> Result<()> {
        let on =
            |capability: MigrationCapability| json!({ "capability": capability, "state": true });
        let capabilities = [on(MigrationCapability::mapped_ram), on(MigrationCapability::multifd)];
        self.ask("migrate-set-capabilities", json!({ "capabilities": capabilities })).await?;
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        let channels = processors.clamp(*CHANNELS.start(), *CHANNELS.end());
        let parameters = json!({ "max-bandwidth": bandwidth, "multifd-channels": channels });
        self.ask("migrate-set-parameters", parameters).await.map(drop)
    }

    /// Waits for the end of a transfer.
    async fn transferred(&self, doing: &str, nominal: Duration) -> Result<()> {
        let look = || async {
            match self.qmp.call(&qapi_qmp::query_migrate {}).await {
                Ok(info) => self.judge(doing, &info),
                Err(e) => Poll::Failed(e),
            }
        };
        let what = format!("{}: {doing}", self.name);
        let waited = self.patience.until(&what, nominal, LOOK, &self.death(), look).await;
        waited.map_err(|e| e.evidence(self.evidence()))
    }

    fn judge(&self, doing: &str, info: &MigrationInfo) -> Poll<()> {
        match info.status {
            Some(MigrationStatus::completed) => Poll::Ready(()),
            Some(MigrationStatus::failed | MigrationStatus::cancelled) => {
                let why = info.error_desc.as_deref().unwrap_or("QEMU does not say why");
                Poll::Failed(Error::lab(format!("{}: {doing} failed: {why}", self.name)))
            }
            status => {
                if let Some(ram) = &info.ram {
                    let (done, total) = (ram.total - ram.remaining, ram.total);
                    self.patience.events.node(&self.name, doing, done.max(0) as u64, total as u64);
                }
                Poll::NotYet(format!("{status:?}"))
            }
        }
    }

    async fn ask(&self, command: &str, arguments: Value) -> Result<Value> {
        let answer = self.qmp.call_raw(command, arguments, STOPS).await;
        answer.map_err(|e| self.explain(e))
    }
}

/// As an object: in a URI a comma in the path would begin an option.
fn channel(file: &Path) -> Value {
    let address = json!({ "transport": "file", "filename": file, "offset": 0 });
    json!([{ "channel-type": "main", "addr": address }])
}
