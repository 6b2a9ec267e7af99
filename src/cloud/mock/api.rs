//! The APIs: a store of JSON things by kind, with the few rules between them that the proof meets.

use super::serve::{Answer, Asked};
use super::{ADMIN_PASSWORD, FIXED, FLOATING, INSTANCE_MAC, ROUTER, State, VNI};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

type Reply = Result<(u16, Value), (u16, String)>;

fn no<T>(status: u16, why: &str) -> Result<T, (u16, String)> {
    Err((status, why.to_owned()))
}

impl State {
    pub(super) fn populate(&mut self) {
        self.passwords.insert("admin".into(), ADMIN_PASSWORD.into());
        self.all("projects").push(json!({"id": "p-admin", "name": "admin"}));
        self.all("users").push(json!({"id": "u-admin", "name": "admin"}));
        for role in ["admin", "member"] {
            self.all("roles").push(json!({"id": format!("r-{role}"), "name": role}));
        }
        self.grants.push(("p-admin".into(), "u-admin".into(), "r-admin".into()));
        self.add_hypervisor("openstack2");
        let dead = self.faults.dead_agent;
        for (binary, host, alive) in [
            ("neutron-l3-agent", "openstack1", true),
            ("neutron-openvswitch-agent", "openstack2", !dead),
        ] {
            self.all("agents").push(
                json!({"binary": binary, "host": host, "alive": alive, "admin_state_up": true}),
            );
        }
    }

    pub(super) fn answer(&mut self, asked: &Asked) -> Answer {
        let failed = |status, message: &str| Answer {
            status,
            token: None,
            body: json!({"error": {"message": message, "code": status}}),
        };
        if asked.port == 5000 && asked.path == ["v3", "auth", "tokens"] {
            return match self.log_in(&asked.json()) {
                Some((token, body)) => Answer { status: 201, token: Some(token), body },
                None => failed(401, "The request you have made requires authentication."),
            };
        }
        if self.unavailable > 0 {
            self.unavailable -= 1;
            return failed(503, "starting");
        }
        let Some(who) = asked.token.as_ref().and_then(|t| self.tokens.get(t)).cloned() else {
            return failed(401, "The request you have made requires authentication.");
        };
        let (_, project, admin) = &who;
        let path: Vec<&str> = asked.path.iter().map(String::as_str).collect();
        let reply = match asked.port {
            5000 => self.identity(asked, &path),
            9292 => self.image(asked, &path, project),
            8774 => self.compute(asked, &path, *admin),
            9696 => self.network(asked, &path, project, *admin),
            _ => Ok((200, json!({"versions": []}))),
        };
        match reply {
            Ok((status, body)) => Answer { status, token: None, body },
            Err((status, why)) => failed(status, &why),
        }
    }

    fn log_in(&mut self, body: &Value) -> Option<(String, Value)> {
        let user = body["auth"]["identity"]["password"]["user"].clone();
        let name = user["name"].as_str()?;
        let project = body["auth"]["scope"]["project"]["name"].as_str()?;
        if self.passwords.get(name).map(String::as_str) != user["password"].as_str() {
            return None;
        }
        let id = |all: &[Value], n: &str| {
            all.iter().find(|t| t["name"] == n).map(|t| t["id"].as_str().unwrap().to_owned())
        };
        let (u, p) = (id(self.of("users"), name)?, id(self.of("projects"), project)?);
        let roles: Vec<Value> = self
            .grants
            .iter()
            .filter(|(gp, gu, _)| (gp, gu) == (&p, &u))
            .map(|(_, _, r)| json!({"id": r, "name": r.trim_start_matches("r-")}))
            .collect();
        if roles.is_empty() {
            return None;
        }
        self.logins += 1;
        let token = format!("gAAAA-{name}-{}-{}", self.epoch, self.logins);
        let is_admin = roles.iter().any(|r| r["name"] == "admin");
        self.tokens.insert(token.clone(), (u.clone(), p.clone(), is_admin));
        let mut services = vec![
            ("identity", 5000, "/v3/"),
            ("image", 9292, ""),
            ("compute", 8774, "/v2.1"),
            ("network", 9696, ""),
        ];
        if !self.faults.no_placement {
            services.push(("placement", 8778, ""));
        }
        let catalog: Vec<Value> = services
            .into_iter()
            .map(|(kind, port, path)| {
                let endpoint = |interface: &str| {
                    json!({
                        "interface": interface,
                        "region_id": self.region,
                        "url": format!("http://openstack1:{port}{path}"),
                    })
                };
                let endpoints = ["public", "internal", "admin"].map(endpoint);
                json!({"type": kind, "name": kind, "endpoints": endpoints})
            })
            .collect();
        let body = json!({"token": {
            "user": {"id": u, "name": name}, "project": {"id": p, "name": project},
            "roles": roles, "catalog": catalog,
        }});
        Some((token, body))
    }

    fn identity(&mut self, asked: &Asked, path: &[&str]) -> Reply {
        match (asked.method.as_str(), path) {
            ("GET", ["v3"]) => Ok((200, json!({"version": {}}))),
            ("PUT", ["v3", "projects", p, "users", u, "roles", r]) => {
                self.grants.push((p.to_string(), u.to_string(), r.to_string()));
                Ok((204, Value::Null))
            }
            ("GET", ["v3", "role_assignments"]) => {
                let user = asked.wants("user.id").unwrap_or_default();
                let found: Vec<Value> = self
                    .grants
                    .iter()
                    .filter(|(_, u, _)| u == user)
                    .map(|(p, _, r)| json!({"role": {"id": r}, "scope": {"project": {"id": p}}}))
                    .collect();
                Ok((200, json!({"role_assignments": found})))
            }
            ("POST", ["v3", "users"]) => {
                let body = asked.json()["user"].clone();
                let name = body["name"].as_str().unwrap().to_owned();
                self.passwords.insert(name, body["password"].as_str().unwrap().to_owned());
                self.create("users", "user", json!({"name": body["name"]}))
            }
            ("DELETE", ["v3", "users", id]) if std::mem::take(&mut self.faults.user_stays_once) => {
                no(403, &format!("user {id} is locked"))
            }
            ("DELETE", ["v3", "users", id]) => {
                self.grants.retain(|(_, u, _)| u != id);
                self.remove("users", id)
            }
            (_, ["v3", kind @ ("projects" | "users" | "roles"), rest @ ..]) => {
                self.generic(asked, kind, kind.trim_end_matches('s'), rest)
            }
            _ => no(404, "no such path"),
        }
    }

    fn image(&mut self, asked: &Asked, path: &[&str], project: &str) -> Reply {
        let public = self.faults.image_public;
        let is_stranger = |u: &Value| u["name"].as_str().is_some_and(|n| n.starts_with("stranger"));
        let lost = self.faults.image_lost && self.of("users").iter().any(is_stranger);
        let (killed, corrupted) = (self.faults.image_killed, self.faults.image_corrupted);
        match (asked.method.as_str(), path) {
            ("GET", []) => Ok((300, json!({"versions": []}))),
            ("POST", ["v2", "images"]) => {
                let mut image = asked.json();
                image["id"] = self.fresh_id().into();
                image["status"] = "queued".into();
                image["owner"] = project.into();
                self.all("images").push(image.clone());
                Ok((201, image))
            }
            ("PUT", ["v2", "images", id, "file"]) => {
                let mut bytes = asked.body.clone();
                if corrupted {
                    bytes[0] ^= 1;
                }
                let digest: String =
                    Sha512::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
                let image = self.thing("images", id)?;
                image["size"] = bytes.len().into();
                image["status"] = if killed { "killed" } else { "active" }.into();
                image["os_hash_algo"] = "sha512".into();
                image["os_hash_value"] = digest.into();
                Ok((204, Value::Null))
            }
            ("GET", ["v2", "images", id]) => {
                let image = self.thing("images", id)?.clone();
                if lost || image["owner"] != project && !public {
                    return no(404, "No image found");
                }
                Ok((200, image))
            }
            ("GET", ["v2", "images"]) => {
                let owner = asked.wants("owner");
                let found: Vec<_> = self
                    .of("images")
                    .iter()
                    .filter(|i| {
                        i["owner"] == owner.unwrap_or(project) || (public && owner.is_none())
                    })
                    .cloned()
                    .collect();
                Ok((200, json!({"images": found})))
            }
            ("DELETE", ["v2", "images", id]) => self.remove("images", id),
            _ => no(404, "no such path"),
        }
    }

    fn compute(&mut self, asked: &Asked, path: &[&str], admin: bool) -> Reply {
        if asked.path.len() > 1 && asked.microversion.is_none() {
            return no(400, "no microversion stated");
        }
        match (asked.method.as_str(), path) {
            ("GET", ["v2.1"]) => Ok((200, json!({"version": {}}))),
            ("POST", ["v2.1", "flavors"]) if !admin && !self.faults.anyone_makes_flavors => no(
                403,
                "Policy doesn't allow os_compute_api:os-flavor-manage:create to be performed.",
            ),
            ("POST", ["v2.1", "os-keypairs"]) => {
                let mut key = asked.json()["keypair"].clone();
                key["id"] = key["name"].clone();
                key["fingerprint"] = "aa:bb".into();
                self.all("os-keypairs").push(key.clone());
                Ok((201, json!({"keypair": key})))
            }
            ("GET", ["v2.1", "os-services"]) => {
                Ok((200, json!({"services": self.of("os-services")})))
            }
            ("PUT", ["v2.1", "os-services", _]) if !admin => {
                no(403, "Policy doesn't allow os_compute_api:os-services:update to be performed.")
            }
            ("PUT", ["v2.1", "os-services", id]) => {
                let asked = asked.json();
                if self.faults.stays_disabled && asked["status"] == "enabled" {
                    return no(500, "the host does not answer");
                }
                let service = self.thing("os-services", id)?;
                service["status"] = asked["status"].clone();
                service["disabled_reason"] = asked["disabled_reason"].clone();
                Ok((200, json!({"service": service.clone()})))
            }
            ("GET", ["v2.1", "os-hypervisors", "detail"]) => {
                let of = |service: &Value| {
                    json!({
                        "hypervisor_hostname": service["host"], "state": service["state"],
                        "hypervisor_type": "QEMU", "memory_mb": 3000, "vcpus": 2,
                    })
                };
                let all: Vec<Value> = self.of("os-services").iter().map(of).collect();
                Ok((200, json!({"hypervisors": all})))
            }
            ("POST", ["v2.1", "servers"]) => self.boot(asked.json()["server"].clone()),
            ("GET", ["v2.1", "servers"]) => {
                self.progress();
                self.generic(asked, "servers", "server", &[])
            }
            ("GET", ["v2.1", "servers", id]) => {
                self.progress();
                let mut server = self.thing("servers", id)?.clone();
                if !admin {
                    server.as_object_mut().unwrap().remove("OS-EXT-SRV-ATTR:host");
                }
                Ok((200, json!({"server": server})))
            }
            ("DELETE", ["v2.1", "servers", id]) => {
                self.all("ports").retain(|p| p["device_id"] != *id);
                self.booted = None;
                self.remove("servers", id)
            }
            ("POST", ["v2.1", "servers", id, "action"]) => {
                self.thing("servers", id)?;
                if asked.json()["reboot"]["type"] == "HARD" {
                    self.reboot();
                    return Ok((202, Value::Null));
                }
                Ok((200, json!({"output": self.console()})))
            }
            (_, ["v2.1", kind, rest @ ..]) => {
                let kind = *kind;
                self.generic(asked, kind, kind.trim_end_matches('s'), rest)
            }
            _ => no(404, "no such path"),
        }
    }

    fn boot(&mut self, asked: Value) -> Reply {
        let id = self.fresh_id();
        let network = asked["networks"][0]["uuid"].clone();
        let group = asked["security_groups"][0]["name"].clone();
        let failed = self.faults.binding_failed;
        let (wrong, disabled) = (self.faults.wrong_host, self.faults.disabled_hosts_used);
        let takes = |s: &&Value| disabled || s["status"] == "enabled";
        let host = self.of("os-services").iter().find(takes).map(|s| s["host"].clone());
        let Some(host) = host else { return no(500, "no host is enabled") };
        let project = self
            .of("networks")
            .iter()
            .find(|n| n["id"] == network)
            .map(|n| n["project_id"].clone());
        // A host makes it.
        if !self.faults.no_valid_host {
            self.port(json!({
                "device_id": id, "device_owner": "compute:nova", "network_id": network,
                "mac_address": INSTANCE_MAC, "security_groups": [group],
                "fixed_ips": [{"subnet_id": "s", "ip_address": FIXED}],
                "status": if failed { "DOWN" } else { "ACTIVE" },
                "binding:vif_type": if failed { "binding_failed" } else { "ovs" },
                "binding:host_id": host, "project_id": project,
            }));
        }
        let mut server = asked;
        server["id"] = id.clone().into();
        server["status"] = "BUILD".into();
        server["OS-EXT-STS:task_state"] = "scheduling".into();
        server["OS-EXT-SRV-ATTR:host"] = if wrong { "openstack1".into() } else { host };
        self.all("servers").push(server);
        Ok((202, json!({"server": {"id": id}})))
    }

    /// A server needs a few looks to become what it will be.
    fn progress(&mut self) {
        self.polls += 1;
        if !self.polls.is_multiple_of(3) {
            return;
        }
        let faults = self.faults.clone();
        let Some(server) = self.all("servers").last_mut() else { return };
        if faults.no_valid_host {
            server["status"] = "ERROR".into();
            server["OS-EXT-STS:task_state"] = Value::Null;
            server["fault"] = json!({
                "message": "No valid host was found. There are not enough hosts available.",
                "details": "Traceback\nGot no allocation candidates from the Placement API",
            });
        } else if server["status"] != "ACTIVE" && !faults.binding_failed {
            server["status"] = "ACTIVE".into();
            server["OS-EXT-STS:task_state"] = Value::Null;
            if self.booted.is_none() {
                self.start_guest();
            }
        }
    }

    fn reboot(&mut self) {
        let server = self.all("servers").last_mut().unwrap();
        server["status"] = "HARD_REBOOT".into();
        server["OS-EXT-STS:task_state"] = "rebooting_hard".into();
        if !self.faults.reboot_does_nothing {
            self.booted = None;
        }
    }

    fn port(&mut self, mut port: Value) -> String {
        let id = self.fresh_id();
        port["id"] = id.clone().into();
        self.all("ports").push(port);
        id
    }

    fn network(&mut self, asked: &Asked, path: &[&str], project: &str, admin: bool) -> Reply {
        let body = asked.json();
        match (asked.method.as_str(), path) {
            ("GET", []) => Ok((200, json!({"versions": []}))),
            ("POST", ["v2.0", "networks"]) => {
                let flat = body["network"]["provider:network_type"] == "flat";
                let mut network = json!({
                    "status": "ACTIVE", "mtu": if flat { 1500 } else { 1450 }, "project_id": project,
                    "router:external": false, "provider:network_type": "vxlan",
                    "provider:segmentation_id": VNI, "provider:physical_network": null,
                });
                merge(&mut network, &body["network"]);
                let (reply, made) = self.create("networks", "network", network)?;
                self.all("security-groups")
                    .retain(|g| g["name"] != "default" || g["project_id"] != project);
                let id = self.fresh_id();
                self.all("security-groups")
                    .push(json!({"id": id, "name": "default", "project_id": project}));
                if self.faults.stray_port && !admin {
                    self.port(json!({
                        "device_owner": "", "network_id": "elsewhere", "status": "DOWN",
                        "mac_address": "fa:16:3e:ff:ff:ff", "project_id": project,
                    }));
                }
                Ok((reply, json!({"network": without_provider(made["network"].clone(), admin)})))
            }
            ("POST", ["v2.0", "subnets"]) => {
                let mut subnet = json!({"project_id": project});
                merge(&mut subnet, &body["subnet"]);
                if subnet["enable_dhcp"] == true {
                    self.port(json!({
                        "device_owner": "network:dhcp", "network_id": subnet["network_id"],
                        "status": "ACTIVE", "mac_address": "fa:16:3e:00:00:02",
                        "fixed_ips": [{"subnet_id": "s", "ip_address": "10.5.5.2"}],
                        "project_id": project,
                    }));
                }
                self.create("subnets", "subnet", subnet)
            }
            ("POST", ["v2.0", "routers"]) => {
                let router = json!({"name": body["router"]["name"], "status": "ACTIVE",
                    "external_gateway_info": null, "project_id": project});
                self.create("routers", "router", router)
            }
            ("PUT", ["v2.0", "routers", id, "add_router_interface"]) => {
                let subnet = self.thing("subnets", body["subnet_id"].as_str().unwrap())?.clone();
                self.port(json!({
                    "device_id": id, "device_owner": "network:router_interface", "status": "ACTIVE",
                    "network_id": subnet["network_id"], "mac_address": "fa:16:3e:00:00:01",
                    "fixed_ips": [{"subnet_id": subnet["id"], "ip_address": subnet["gateway_ip"]}],
                    "project_id": project,
                }));
                Ok((200, json!({})))
            }
            ("PUT", ["v2.0", "routers", id, "remove_router_interface"]) => {
                let is = |p: &Value| {
                    p["device_id"] == *id && p["device_owner"] == "network:router_interface"
                };
                if !self.of("ports").iter().any(is) {
                    return no(404, "no interface");
                }
                self.all("ports").retain(|p| !is(p));
                Ok((200, json!({})))
            }
            ("PUT", ["v2.0", "routers", id]) => {
                let mut info = body["router"]["external_gateway_info"].clone();
                info["external_fixed_ips"] = json!([{"subnet_id": "s", "ip_address": ROUTER}]);
                self.port(json!({
                    "device_id": id, "device_owner": "network:router_gateway", "status": "ACTIVE",
                    "network_id": info["network_id"], "mac_address": "fa:16:3e:00:01:01",
                    "fixed_ips": info["external_fixed_ips"], "project_id": "",
                }));
                let router = self.thing("routers", id)?;
                router["external_gateway_info"] = info;
                Ok((200, json!({"router": router.clone()})))
            }
            ("DELETE", ["v2.0", "routers", id]) => {
                let is =
                    |p: &Value, owner: &str| p["device_id"] == *id && p["device_owner"] == owner;
                if self.of("ports").iter().any(|p| is(p, "network:router_interface")) {
                    return no(409, "router still has ports");
                }
                self.all("ports").retain(|p| !is(p, "network:router_gateway"));
                self.remove("routers", id)
            }
            ("DELETE", ["v2.0", "networks", id]) => {
                let uses =
                    |p: &Value| p["network_id"] == *id && p["device_owner"] != "network:dhcp";
                let project = self.thing("networks", id)?["project_id"].clone();
                if self.of("ports").iter().any(uses) {
                    return no(409, "network in use");
                }
                if self.faults.network_stays && project != "p-admin" {
                    return no(500, "the database is locked");
                }
                self.all("ports").retain(|p| p["network_id"] != *id);
                self.remove("networks", id)
            }
            ("POST", ["v2.0", "security-groups"]) => {
                let mut group = json!({"project_id": project, "security_group_rules": [
                    {"id": "e4", "direction": "egress"}, {"id": "e6", "direction": "egress"},
                ]});
                merge(&mut group, &body["security_group"]);
                self.create("security-groups", "security_group", group)
            }
            ("DELETE", ["v2.0", "security-groups", id]) => {
                let uses = |p: &Value| {
                    p["security_groups"].as_array().is_some_and(|g| g.contains(&json!(id)))
                };
                if self.of("ports").iter().any(uses) {
                    return no(409, "security group in use");
                }
                self.all("security-group-rules").retain(|r| r["security_group_id"] != *id);
                self.remove("security-groups", id)
            }
            ("POST", ["v2.0", "security-group-rules"]) => self.create(
                "security-group-rules",
                "security_group_rule",
                body["security_group_rule"].clone(),
            ),
            ("POST", ["v2.0", "floatingips"]) => {
                let network = body["floatingip"]["floating_network_id"].clone();
                self.port(json!({
                    "device_owner": "network:floatingip", "network_id": network, "project_id": "",
                    "mac_address": "fa:16:3e:00:01:05", "status": "N/A",
                    "fixed_ips": [{"subnet_id": "s", "ip_address": FLOATING}],
                }));
                let floating = json!({"floating_ip_address": FLOATING, "status": "DOWN",
                    "fixed_ip_address": null, "port_id": null, "project_id": project});
                self.create("floatingips", "floatingip", floating)
            }
            ("PUT", ["v2.0", "floatingips", id]) => {
                let port = body["floatingip"]["port_id"].clone();
                let works = if self.faults.floating_error { "ERROR" } else { "ACTIVE" };
                let floating = self.thing("floatingips", id)?;
                let (fixed, status) =
                    if port.is_null() { (Value::Null, "DOWN") } else { (json!(FIXED), works) };
                merge(
                    floating,
                    &json!({"port_id": port, "fixed_ip_address": fixed, "status": status}),
                );
                Ok((200, json!({"floatingip": floating.clone()})))
            }
            ("DELETE", ["v2.0", "floatingips", id]) => {
                self.all("ports").retain(|p| p["device_owner"] != "network:floatingip");
                self.remove("floatingips", id)
            }
            ("GET", ["v2.0", "network-ip-availabilities", id]) => {
                let held: usize = self
                    .of("ports")
                    .iter()
                    .filter(|p| p["network_id"] == *id)
                    .map(|p| p["fixed_ips"].as_array().map_or(0, Vec::len))
                    .sum();
                let used = held + usize::from(self.faults.miscounted);
                Ok((200, json!({"network_ip_availability": {"used_ips": used, "total_ips": 253}})))
            }
            ("GET", ["v2.0", kind @ ("networks" | "ports"), rest @ ..]) => {
                let singular = kind.trim_end_matches('s');
                let (status, mut reply) = self.generic(asked, kind, singular, rest)?;
                for key in [*kind, singular] {
                    match &mut reply[key] {
                        Value::Array(all) => {
                            for one in all {
                                *one = without_provider(one.take(), admin);
                            }
                        }
                        one @ Value::Object(_) => *one = without_provider(one.take(), admin),
                        _ => {}
                    }
                }
                Ok((status, reply))
            }
            (_, ["v2.0", kind, rest @ ..]) => {
                let key = kind.replace('-', "_");
                let singular = key.trim_end_matches('s').to_owned();
                let (status, mut reply) = self.generic(asked, kind, &singular, rest)?;
                if let Some(all) = reply.as_object_mut().and_then(|r| r.remove(*kind)) {
                    reply = json!({key: all});
                }
                Ok((status, reply))
            }
            _ => no(404, "no such path"),
        }
    }

    /// Create, list (with filters of equality), show and delete of a kind without rules of its own.
    fn generic(&mut self, asked: &Asked, kind: &str, singular: &str, rest: &[&str]) -> Reply {
        match (asked.method.as_str(), rest) {
            ("POST", []) => self.create(kind, singular, asked.json()[singular].clone()),
            ("GET", []) => {
                let matches = |t: &&Value| {
                    asked.query.iter().all(|(k, v)| k == "all_tenants" || t[k] == v.as_str())
                };
                let found: Vec<_> = self.of(kind).iter().filter(matches).cloned().collect();
                Ok((200, json!({kind: found})))
            }
            ("GET", [id]) => Ok((200, json!({singular: self.thing(kind, id)?.clone()}))),
            ("DELETE", [id]) => self.remove(kind, id),
            _ => no(405, "not allowed"),
        }
    }

    fn create(&mut self, kind: &str, singular: &str, mut thing: Value) -> Reply {
        thing["id"] = self.fresh_id().into();
        self.all(kind).push(thing.clone());
        Ok((201, json!({singular: thing})))
    }

    fn thing(&mut self, kind: &str, id: &str) -> Result<&mut Value, (u16, String)> {
        match self.all(kind).iter_mut().find(|t| t["id"] == id) {
            Some(thing) => Ok(thing),
            None => no(404, "could not be found"),
        }
    }

    fn remove(&mut self, kind: &str, id: &str) -> Reply {
        self.thing(kind, id)?;
        self.all(kind).retain(|t| t["id"] != id);
        Ok((204, Value::Null))
    }
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

fn without_provider(mut thing: Value, admin: bool) -> Value {
    if let (Some(map), false) = (thing.as_object_mut(), admin) {
        map.retain(|key, _| !key.starts_with("provider:") && !key.starts_with("binding:"));
    }
    thing
}
