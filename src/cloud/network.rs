//! Networks, routers, ports, security groups, floating IPs and agents.

use super::http::{ApiError, Method};
use super::session::{Service, Session};
use super::url::query_value;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

#[derive(Clone, Debug, Deserialize)]
pub struct Agent {
    pub binary: String,
    pub host: String,
    pub alive: bool,
    pub admin_state_up: bool,
    pub heartbeat_timestamp: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Network {
    pub id: String,
    pub name: String,
    pub status: String,
    pub mtu: Option<u32>,
    #[serde(rename = "router:external", default)]
    pub external: bool,
    /// Only an administrator sees the provider's attributes.
    #[serde(rename = "provider:network_type")]
    pub kind: Option<String>,
    #[serde(rename = "provider:physical_network")]
    pub physical: Option<String>,
    /// The VNI of a VXLAN network.
    #[serde(rename = "provider:segmentation_id")]
    pub segment: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Subnet {
    pub id: String,
    pub cidr: String,
    pub gateway_ip: Option<Ipv4Addr>,
    pub enable_dhcp: bool,
    #[serde(default)]
    pub dns_nameservers: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Router {
    pub id: String,
    pub status: String,
    pub external_gateway_info: Option<Gateway>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Gateway {
    pub network_id: String,
    #[serde(default)]
    pub enable_snat: bool,
    #[serde(default)]
    pub external_fixed_ips: Vec<FixedIp>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct FixedIp {
    pub subnet_id: String,
    pub ip_address: Ipv4Addr,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Port {
    pub id: String,
    pub status: String,
    pub mac_address: String,
    pub device_owner: String,
    #[serde(default)]
    pub device_id: String,
    #[serde(default)]
    pub fixed_ips: Vec<FixedIp>,
    /// `ovs`, `unbound`, `binding_failed`.
    #[serde(rename = "binding:vif_type")]
    pub vif: Option<String>,
    #[serde(rename = "binding:host_id")]
    pub host: Option<String>,
}

impl Port {
    /// Whether it was tried to bind it to a host.
    pub fn is_bound(&self) -> bool {
        self.vif.as_deref().is_some_and(|vif| vif != "unbound")
    }

    /// Such a port never carries traffic.
    pub fn failed_to_bind(&self) -> bool {
        self.vif.as_deref() == Some("binding_failed")
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct SecurityGroup {
    pub id: String,
    pub name: String,
    #[serde(default)]
    pub security_group_rules: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Rule {
    pub id: String,
    /// `ingress` or `egress`.
    pub direction: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct FloatingIp {
    pub id: String,
    pub floating_ip_address: Ipv4Addr,
    pub fixed_ip_address: Option<Ipv4Addr>,
    pub port_id: Option<String>,
    pub status: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Availability {
    pub used_ips: u64,
    pub total_ips: u64,
}

pub struct Net<'a>(pub &'a Session);

impl Net<'_> {
    pub async fn agents(&self) -> Result<Vec<Agent>, ApiError> {
        self.0.get(Service::Network, "/agents", "agents").await
    }

    pub async fn network_named(&self, name: &str) -> Result<Vec<Network>, ApiError> {
        let path = format!("/networks?name={}", query_value(name));
        self.0.get(Service::Network, &path, "networks").await
    }

    pub async fn network(&self, id: &str) -> Result<Option<Network>, ApiError> {
        self.0.find(Service::Network, &format!("/networks/{id}"), "network").await
    }

    /// `attributes` as the API takes them.
    pub async fn create_network(&self, attributes: Value) -> Result<Network, ApiError> {
        let body = json!({"network": attributes});
        self.0.post(Service::Network, "/networks", body, "network").await
    }

    pub async fn create_subnet(&self, attributes: Value) -> Result<Subnet, ApiError> {
        let body = json!({"subnet": attributes});
        self.0.post(Service::Network, "/subnets", body, "subnet").await
    }

    pub async fn subnets_of(&self, network: &str) -> Result<Vec<Subnet>, ApiError> {
        let path = format!("/subnets?network_id={network}");
        self.0.get(Service::Network, &path, "subnets").await
    }

    pub async fn create_router(&self, name: &str) -> Result<Router, ApiError> {
        let body = json!({"router": {"name": name, "admin_state_up": true}});
        self.0.post(Service::Network, "/routers", body, "router").await
    }

    pub async fn router(&self, id: &str) -> Result<Option<Router>, ApiError> {
        self.0.find(Service::Network, &format!("/routers/{id}"), "router").await
    }

    pub async fn add_interface(&self, router: &str, subnet: &str) -> Result<(), ApiError> {
        let path = format!("/routers/{router}/add_router_interface");
        self.0.order(Service::Network, Method::PUT, &path, json!({"subnet_id": subnet})).await
    }

    /// What is already gone is fine.
    pub async fn remove_interface(&self, router: &str, subnet: &str) -> Result<(), ApiError> {
        let path = format!("/routers/{router}/remove_router_interface");
        let body = json!({"subnet_id": subnet});
        match self.0.order(Service::Network, Method::PUT, &path, body).await {
            Err(e) if !e.is(404) => Err(e),
            _ => Ok(()),
        }
    }

    pub async fn set_gateway(&self, router: &str, network: &str) -> Result<Router, ApiError> {
        let body = json!({"router": {"external_gateway_info": {"network_id": network}}});
        let path = format!("/routers/{router}");
        self.0.send(Service::Network, Method::PUT, &path, body, "router").await
    }

    /// Ports whose `field` has this value: `device_id`, `network_id`, `project_id`.
    pub async fn ports(&self, field: &str, value: &str) -> Result<Vec<Port>, ApiError> {
        let path = format!("/ports?{field}={}", query_value(value));
        self.0.get(Service::Network, &path, "ports").await
    }

    pub async fn create_group(&self, name: &str, about: &str) -> Result<SecurityGroup, ApiError> {
        let body = json!({"security_group": {"name": name, "description": about}});
        self.0.post(Service::Network, "/security-groups", body, "security_group").await
    }

    /// Lets in `protocol` from anywhere, to `port` where one is given.
    pub async fn allow(
        &self,
        group: &str,
        protocol: &str,
        port: Option<u16>,
    ) -> Result<Rule, ApiError> {
        let body = json!({"security_group_rule": {
            "security_group_id": group,
            "direction": "ingress",
            "ethertype": "IPv4",
            "protocol": protocol,
            "port_range_min": port,
            "port_range_max": port,
            "remote_ip_prefix": "0.0.0.0/0",
        }});
        self.0.post(Service::Network, "/security-group-rules", body, "security_group_rule").await
    }

    pub async fn create_floating_ip(&self, network: &str) -> Result<FloatingIp, ApiError> {
        let body = json!({"floatingip": {"floating_network_id": network}});
        self.0.post(Service::Network, "/floatingips", body, "floatingip").await
    }

    /// `None` takes it away from its port.
    pub async fn associate(&self, id: &str, port: Option<&str>) -> Result<FloatingIp, ApiError> {
        let body = json!({"floatingip": {"port_id": port}});
        let path = format!("/floatingips/{id}");
        self.0.send(Service::Network, Method::PUT, &path, body, "floatingip").await
    }

    pub async fn floating_ip(&self, id: &str) -> Result<Option<FloatingIp>, ApiError> {
        self.0.find(Service::Network, &format!("/floatingips/{id}"), "floatingip").await
    }

    pub async fn availability(&self, network: &str) -> Result<Availability, ApiError> {
        let path = format!("/network-ip-availabilities/{network}");
        self.0.get(Service::Network, &path, "network_ip_availability").await
    }
}
