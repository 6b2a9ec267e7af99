//! Flavors, key pairs, servers, hypervisors and the compute services.

use super::http::{ApiError, Method};
use super::session::{Service, Session};
use super::url::query_value;
use crate::error::{Error, Kind};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Clone, Debug, Deserialize)]
pub struct Flavor {
    pub id: String,
    pub name: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Server {
    pub id: String,
    pub name: String,
    /// `BUILD`, `ACTIVE`, `ERROR`, `HARD_REBOOT`, ...
    pub status: String,
    #[serde(rename = "OS-EXT-STS:task_state")]
    pub task: Option<String>,
    /// Only an administrator sees it.
    #[serde(rename = "OS-EXT-SRV-ATTR:host")]
    pub host: Option<String>,
    pub fault: Option<Fault>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Fault {
    pub message: String,
    pub details: Option<String>,
}

impl Server {
    /// What nova says went wrong, in its own words, where it gave the server up.
    pub fn failure(&self) -> Option<Error> {
        if self.status != "ERROR" {
            return None;
        }
        let e = Error::new(Kind::Proof, "the server went to ERROR");
        Some(match &self.fault {
            None => {
                e.hint("nova gave no reason: look into nova-conductor's and nova-compute's log")
            }
            Some(fault) => {
                let details = fault.details.as_deref().unwrap_or_default();
                let lines: Vec<_> = details.lines().filter(|l| !l.trim().is_empty()).collect();
                e.evidence([fault.message.as_str()])
                    .evidence(lines[lines.len().saturating_sub(4)..].to_vec())
            }
        })
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct ComputeService {
    pub id: String,
    pub binary: String,
    pub host: String,
    /// `up` or `down`.
    pub state: String,
    /// `enabled` or `disabled`.
    pub status: String,
    pub disabled_reason: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Hypervisor {
    #[serde(rename = "hypervisor_hostname")]
    pub host: String,
    pub state: String,
    pub hypervisor_type: String,
    #[serde(default)]
    pub memory_mb: u64,
    #[serde(default)]
    pub vcpus: u64,
}

/// What a new server is made of.
#[derive(Clone, Debug)]
pub struct NewServer<'a> {
    pub name: &'a str,
    pub image: &'a str,
    pub flavor: &'a str,
    pub key: &'a str,
    pub network: &'a str,
    /// By id.
    pub security_group: &'a str,
    /// Base64.
    pub user_data: &'a str,
    pub metadata: Value,
}

pub struct Compute<'a>(pub &'a Session);

impl Compute<'_> {
    /// Memory in MiB, disk in GiB.
    pub async fn create_flavor(
        &self,
        name: &str,
        ram: u64,
        disk: u64,
        vcpus: u64,
    ) -> Result<Flavor, ApiError> {
        let body = json!({"flavor": {"name": name, "ram": ram, "disk": disk, "vcpus": vcpus}});
        self.0.post(Service::Compute, "/flavors", body, "flavor").await
    }

    pub async fn import_key(&self, name: &str, public_key: &str) -> Result<String, ApiError> {
        let body = json!({"keypair": {"name": name, "type": "ssh", "public_key": public_key}});
        let made: Value = self.0.post(Service::Compute, "/os-keypairs", body, "keypair").await?;
        Ok(made["fingerprint"].as_str().unwrap_or_default().to_owned())
    }

    pub async fn create_server(&self, new: &NewServer<'_>) -> Result<String, ApiError> {
        #[derive(Deserialize)]
        struct Made {
            id: String,
        }
        let body = json!({"server": {
            "name": new.name,
            "imageRef": new.image,
            "flavorRef": new.flavor,
            "key_name": new.key,
            "networks": [{"uuid": new.network}],
            "security_groups": [{"name": new.security_group}],
            "user_data": new.user_data,
            "metadata": new.metadata,
            "min_count": 1,
            "max_count": 1,
        }});
        let made: Made = self.0.post(Service::Compute, "/servers", body, "server").await?;
        Ok(made.id)
    }

    pub async fn server(&self, id: &str) -> Result<Option<Server>, ApiError> {
        self.0.find(Service::Compute, &format!("/servers/{id}"), "server").await
    }

    /// Whether this project has a server of this name, in `status` where one is given. For waits:
    /// [`server`](Self::server) makes nova ask neutron for ports and groups each time.
    pub async fn is_listed(&self, name: &str, status: Option<&str>) -> Result<bool, ApiError> {
        let mut path = format!("/servers?name={}", query_value(name));
        if let Some(status) = status {
            path += &format!("&status={status}");
        }
        let found: Vec<Value> = self.0.get(Service::Compute, &path, "servers").await?;
        Ok(!found.is_empty())
    }

    pub async fn hard_reboot(&self, id: &str) -> Result<(), ApiError> {
        let path = format!("/servers/{id}/action");
        let body = json!({"reboot": {"type": "HARD"}});
        self.0.order(Service::Compute, Method::POST, &path, body).await
    }

    /// The last `lines` lines of the serial console.
    pub async fn console(&self, id: &str, lines: u32) -> Result<String, ApiError> {
        let path = format!("/servers/{id}/action");
        let body = json!({"os-getConsoleOutput": {"length": lines}});
        self.0.post(Service::Compute, &path, body, "output").await
    }

    pub async fn services(&self) -> Result<Vec<ComputeService>, ApiError> {
        self.0.get(Service::Compute, "/os-services", "services").await
    }

    /// The scheduler passes over the host of a service that is disabled for a reason.
    pub async fn disable_service(&self, id: &str, reason: &str) -> Result<(), ApiError> {
        let body = json!({"status": "disabled", "disabled_reason": reason});
        self.0.order(Service::Compute, Method::PUT, &format!("/os-services/{id}"), body).await
    }

    pub async fn enable_service(&self, id: &str) -> Result<(), ApiError> {
        let body = json!({"status": "enabled"});
        self.0.order(Service::Compute, Method::PUT, &format!("/os-services/{id}"), body).await
    }

    pub async fn hypervisors(&self) -> Result<Vec<Hypervisor>, ApiError> {
        self.0.get(Service::Compute, "/os-hypervisors/detail", "hypervisors").await
    }
}
