//! The rooms of the house joined into one run: what each phase calls. Everything that knows two
//! rooms at once is here and nowhere else.

use super::instance::Instance;
use crate::cli::session::Work;
use crate::engine::plan::Plan;
use crate::error::{Error, Result};
use crate::images::store::Store;
use crate::lab::spec::LabSpec;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn not_joined(room: &str) -> Error {
    Error::internal(format!("the room `{room}` is not joined to the command line yet"))
}

/// Tools, memory and disk, before anything is fetched.
pub async fn host(_work: &Work, _spec: &LabSpec, _store: &Store) -> Result<()> {
    Err(not_joined("host"))
}

pub struct Accelerator {}

/// Measures, sets the speed that scales every deadline, and notes both in the record.
pub async fn accelerator(work: &Work, _store: &Store) -> Result<Accelerator> {
    work.learn(|facts| facts.accelerator = None);
    Err(not_joined("lab"))
}

/// The roles of the lab's nodes as a plan for the engine. Secrets are generated here, one each, and
/// made known to the redactor before they are used.
pub fn plan(_work: &Work, _spec: &LabSpec) -> Result<Plan> {
    Err(not_joined("roles"))
}

/// A booted lab that answers to SSH. Dropping it ends every machine and removes the run's files.
pub struct Cluster {}

pub async fn boot(
    _work: &Work,
    _spec: &LabSpec,
    _disks: &BTreeMap<String, PathBuf>,
    _accelerator: &Accelerator,
    _logs: &Path,
    _keep: bool,
) -> Result<Cluster> {
    Err(not_joined("lab"))
}

impl Cluster {
    /// Brings the nodes to the plan; returns the ids of the resources that were changed.
    pub async fn apply(&self, _work: &Work, _plan: &Plan) -> Result<Vec<String>> {
        Err(not_joined("engine"))
    }

    /// The whole story of the proof. Its checks are sent as events; what failed is the error.
    pub async fn prove(
        &self,
        _work: &Work,
        _spec: &LabSpec,
        _plan: &Plan,
        _instance: &Instance,
        _keep: bool,
    ) -> Result<()> {
        Err(not_joined("cloud"))
    }

    /// Consoles, journals and service logs, without secrets, into `logs`.
    pub async fn save_evidence(&self, _work: &Work, _logs: &Path) -> Result<()> {
        Err(not_joined("diagnose"))
    }

    /// Ends the machines in good order.
    pub async fn down(self) -> Result<()> {
        Ok(())
    }
}
