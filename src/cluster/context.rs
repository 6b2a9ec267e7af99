//! What a verb passes to this module.

use crate::event::Events;
use crate::host::Mirrors;
use crate::lab::accel::Accel;
use crate::outbound::OutboundVariables;
use crate::secret::Redactor;
use crate::wait::{Patience, Speed};
use std::path::PathBuf;

/// The choices of the user and the channels of a run. Cheap to clone.
#[derive(Clone)]
pub struct RunContext {
    /// The folder of the store, absolute.
    pub store_dir: PathBuf,
    /// The Debian mirrors that the user named.
    pub mirrors: Option<Mirrors>,
    /// Proxies and certificate authorities.
    pub outbound: OutboundVariables,
    pub events: Events,
    pub redactor: Redactor,
    /// 1 until an accelerator was measured.
    pub speed: Speed,
    /// The accelerator that the user chose.
    pub accel: Option<Accel>,
    /// Whether instances run under KVM, where the user chose.
    pub nested: Option<bool>,
}

impl RunContext {
    pub fn patience(&self) -> Patience {
        Patience::new(self.speed.clone(), self.events.clone())
    }

    /// The folder of builds' and tools' logs.
    pub fn logs_dir(&self) -> PathBuf {
        self.store_dir.join("logs")
    }
}
