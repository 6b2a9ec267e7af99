//! The instance and the world around it: what answers, and what does not.

use super::{
    COMPUTE, DHCP, FIXED, FLOATING, GATEWAY, HOST, INSTANCE_MAC, Mock, ROUTER, State, VNI,
};
use crate::cloud::proof::login::{HostKey, KeyPair, Login, Ran, Refusal, Shell};
use crate::cloud::proof::nodes::Nodes;
use crate::cloud::proof::outside::{Connected, Outside, Wanted, Wire};
use crate::cloud::proof::vxlan;
use crate::cloud::{Later, Stream};
use crate::error::{Error, Result};
use crate::lab::mac::Mac;
use crate::lab::outside::{ConnectFailure, Echo, Neighbour};
use crate::lab::wire::{Arp, BROADCAST, ETHERTYPE_IPV4, Operation, echo_request, ethernet_header};
use bytes::Bytes;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

impl State {
    pub(super) fn start_guest(&mut self) {
        if self.boots > 0 && self.faults.never_back {
            return;
        }
        self.booted = Some(Instant::now());
        self.boots += 1;
    }

    pub(super) fn console(&self) -> String {
        let mut text = String::from("SeaBIOS (version 1.16.3)\nBooting from Hard Disk...\n");
        if self.faults.no_bootable_device {
            return text + "No bootable device.\n";
        }
        if self.booted.is_none() || self.faults.never_up {
            return text + "[    0.5] Linux version 6.12\n";
        }
        text += &format!("if-info: eth0,up,{FIXED},24\nip-route:default via 10.5.5.1 dev eth0\n");
        text += "ip-route:169.254.169.254 via 10.5.5.1 dev eth0\n";
        text += "login as 'cirros' user. default password: 'gocubsgo'. use 'sudo' for root.\n";
        if self.faults.panics_while_silent && self.control_pings > 5 {
            text += "[   99.9] Kernel panic - not syncing: out of memory\n";
        }
        if self.faults.panics_after_reboot && self.boots > 1 {
            text += "[    0.7] Kernel panic - not syncing: VFS\n";
        }
        text
    }

    fn has_rule(&self, protocol: &str) -> bool {
        self.of("security-group-rules").iter().any(|r| r["protocol"] == protocol)
    }

    fn floating_attached(&self) -> bool {
        let attached = |f: &serde_json::Value| !f["port_id"].is_null();
        self.faults.floating_sticks && !self.of("floatingips").is_empty()
            || !self.faults.floating_error && self.of("floatingips").iter().any(attached)
    }

    fn router_answers(&self) -> bool {
        let has_gateway =
            self.of("ports").iter().any(|p| p["device_owner"] == "network:router_gateway");
        let dead = self.faults.router_dies && self.floating_attached();
        has_gateway && !dead
    }

    fn answers_ping(&mut self, to: Ipv4Addr) -> Option<u8> {
        match to {
            ROUTER if self.router_answers() => {
                self.control_pings += 1;
                Some(64)
            }
            FLOATING if self.floating_attached() && self.booted.is_some() => {
                (self.has_rule("icmp") || self.faults.leaky).then(|| {
                    self.cross();
                    self.shown_outside(&packet(FLOATING, US));
                    if self.faults.fixed_leaks {
                        self.shown_outside(&packet(FIXED, US));
                    }
                    self.faults.ttl.unwrap_or(63)
                })
            }
            _ => None,
        }
    }

    /// One packet to the instance and one from it, as they look on the wire.
    fn cross(&mut self) {
        let far = self.of("servers").iter().any(|s| s["OS-EXT-SRV-ATTR:host"] == "openstack2");
        if self.faults.no_vxlan || !far {
            return;
        }
        let mac = INSTANCE_MAC.parse().unwrap();
        for frame in [
            vxlan::tests::frame(HOST, COMPUTE, VNI, mac, Mac([1; 6])),
            vxlan::tests::frame(COMPUTE, HOST, VNI, Mac([1; 6]), mac),
        ] {
            for wanted in &self.taps {
                wanted(&frame);
            }
        }
    }

    fn shown_outside(&self, frame: &[u8]) {
        if !self.faults.blind_outside {
            for wanted in &self.external_taps {
                wanted(frame);
            }
        }
    }

    fn has(&self, who: Ipv4Addr) -> bool {
        match who {
            FLOATING => self.floating_attached(),
            FIXED => self.faults.fixed_known_outside,
            _ => who == ROUTER,
        }
    }

    fn answers_ssh(&self, to: SocketAddrV4) -> bool {
        let open =
            self.has_rule("tcp") || (self.faults.ssh_open_with_icmp && self.has_rule("icmp"));
        *to.ip() == FLOATING
            && to.port() == 22
            && self.floating_attached()
            && self.booted.is_some()
            && open
            && !(self.faults.panics_after_reboot && self.boots > 1)
    }

    fn host_key(&self) -> HostKey {
        let serial = if self.faults.new_host_key_after_reboot { self.boots } else { 1 };
        HostKey(format!("ecdsa-sha2-nistp256 HOST{serial}"))
    }

    fn run(&self, script: &str) -> String {
        let booted = self.booted.unwrap_or_else(Instant::now);
        let mut out = format!(
            "@@stackproof boot\nboot-id-{}\n@@stackproof uptime\n{:.2} 1.00\n",
            self.boots,
            booted.elapsed().as_secs_f64()
        );
        if script.contains("say address") {
            let server = self.of("servers").last().unwrap();
            let another = self.faults.another_after_reboot && self.boots > 1;
            let nonce = match self.faults.other_nonce || another {
                true => serde_json::Value::from("0000"),
                false => server["metadata"]["nonce"].clone(),
            };
            let mtu = self.faults.guest_mtu.unwrap_or(1450);
            out += &format!(
                "@@stackproof address\n2: eth0: <UP> mtu {mtu} qdisc x\n    inet {FIXED}/24 scope global\n"
            );
            out += "@@stackproof route\ndefault via 10.5.5.1 dev eth0\n";
            out += "@@stackproof pings\n";
            for whom in [GATEWAY, DHCP] {
                out += &format!("64 bytes from {whom}: seq=0 ttl=64 time=1 ms\n");
            }
            let local =
                if self.faults.no_metadata_address { String::new() } else { FIXED.to_string() };
            out += &format!(
                "@@stackproof local-ipv4\n{local}\n@@stackproof instance-id\ni-00000001\n"
            );
            out += "@@stackproof user-data\n#!/bin/sh\n@@stackproof meta-data\n";
            out += &serde_json::json!({"meta": {"nonce": nonce}}).to_string();
            let bulk = if self.faults.small_packets_only { 1000 } else { 64 << 10 };
            out += &format!("\n@@stackproof bulk\n{}\n", "x".repeat(bulk));
        }
        if script != "true" {
            out += "@@stackproof end\n";
        }
        out
    }
}

/// Ours on the external network.
const US: Ipv4Addr = Ipv4Addr::new(172, 24, 4, 1);
const ROUTER_MAC: Mac = Mac([0xfa, 0x16, 0x3e, 0, 1, 1]);

fn packet(src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
    let header = ethernet_header(Mac([2; 6]), ROUTER_MAC, ETHERTYPE_IPV4);
    [&header[..], &echo_request(src, dst, 1, 1, b"x")].concat()
}

async fn nothing_for(timeout: Duration) {
    let _ = tokio::time::timeout(timeout, std::future::pending::<()>()).await;
}

impl Outside for Mock {
    fn ping(&self, to: Ipv4Addr, timeout: Duration) -> Later<'_, Result<Option<Echo>>> {
        Box::pin(async move {
            if to.octets()[..3] != US.octets()[..3] {
                return Err(Error::lab(format!("cannot ping {to}: {US} has no route to it")));
            }
            match self.with(|s| s.answers_ping(to)) {
                Some(ttl) => Ok(Some(Echo { rtt: Duration::from_millis(3), ttl })),
                None => {
                    nothing_for(timeout).await;
                    Ok(None)
                }
            }
        })
    }

    fn connect(&self, to: SocketAddrV4, timeout: Duration) -> Later<'_, Connected> {
        Box::pin(async move {
            if !self.with(|s| s.answers_ssh(to)) {
                nothing_for(timeout).await;
                return Err(ConnectFailure::TimedOut(timeout));
            }
            Ok(Box::new(tokio::io::duplex(64).0) as Box<dyn Stream>)
        })
    }

    fn resolve(&self, who: Ipv4Addr, timeout: Duration) -> Later<'_, Result<Neighbour>> {
        Box::pin(async move {
            let request = Arp {
                operation: Operation::Request,
                sender_mac: Mac([2; 6]),
                sender: US,
                target_mac: Mac([0; 6]),
                target: who,
            };
            let known = self.with(|s| {
                s.shown_outside(&request.frame(BROADCAST));
                s.has(who)
            });
            if known {
                return Ok(Neighbour::Known(ROUTER_MAC));
            }
            nothing_for(timeout).await;
            Ok(Neighbour::Incomplete)
        })
    }

    fn who_has(&self, who: Ipv4Addr, timeout: Duration) -> Later<'_, Result<Neighbour>> {
        self.resolve(who, timeout)
    }
}

impl Wire for Mock {
    fn tap(&self, wanted: Wanted) -> mpsc::Receiver<Bytes> {
        self.with(|s| s.taps.push(wanted));
        mpsc::channel(1).1
    }
}

impl Nodes for Mock {
    fn run<'a>(&'a self, node: &'a str, script: String) -> Later<'a, Result<Ran>> {
        Box::pin(async move {
            assert_eq!(node, "openstack1", "namespaces are on the network node");
            let stdout = self.with(|s| s.inside(&script));
            Ok(Ran { status: Some(0), stdout, stderr: String::new() })
        })
    }
}

impl State {
    /// What the network node says, to whatever of it is asked.
    fn inside(&self, script: &str) -> String {
        let named = |prefix: &str| {
            let at = script.find(prefix).expect("the namespace is named");
            script[at..].split_whitespace().next().unwrap_or_default().to_owned()
        };
        let echo = |whom: &str, address: Ipv4Addr| {
            format!("@@stackproof {whom}\n64 bytes from {address}: seq=0 time=1 ms\n")
        };
        let mut out = String::new();
        if script.contains("ip netns list") {
            out += &format!("@@stackproof namespaces\n{} (id: 1)\n", named("qrouter-"));
            if !self.faults.no_dhcp_namespace {
                out += &format!("{} (id: 0)\n", named("qdhcp-"));
            }
            out += &format!(
                "@@stackproof router\n7: qr-1    inet 10.5.5.1/24 x\n8: qg-1    inet {ROUTER}/24 x\n\
                 @@stackproof port\n9: tap1    inet {DHCP}/24 x\n"
            );
            out += &echo("gateway", GATEWAY);
        }
        out += &echo("dhcp", DHCP);
        if self.has_rule("icmp") || self.faults.leaky_inside {
            out += &echo("instance", FIXED);
        }
        let state = match self.faults.neighbour_incomplete {
            true => "INCOMPLETE".to_owned(),
            false => format!("lladdr {INSTANCE_MAC} REACHABLE"),
        };
        out += &format!("@@stackproof neighbour\n{FIXED} dev qr-1 {state}\n");
        if script.contains("ssh -i") && self.has_rule("tcp") {
            let boot = if self.faults.another_inside { 9 } else { self.boots };
            out += &format!("@@stackproof mode\n600\n@@stackproof boot\nboot-id-{boot}\n");
        }
        out + "@@stackproof end\n"
    }
}

/// The mock's external network.
pub struct External(pub Arc<Mock>);

impl Wire for External {
    fn tap(&self, wanted: Wanted) -> mpsc::Receiver<Bytes> {
        self.0.with(|s| s.external_taps.push(wanted));
        mpsc::channel(1).1
    }
}

impl Login for Mock {
    fn connect<'a>(
        &'a self,
        _: Box<dyn Stream>,
        user: &'a str,
        key: &'a KeyPair,
        pin: Option<&'a HostKey>,
    ) -> Later<'a, Result<Box<dyn Shell>, Refusal>> {
        Box::pin(async move {
            let host_key = self.with(|s| s.host_key());
            if pin.is_some_and(|pin| *pin != host_key) {
                return Err(Refusal::HostKeyChanged { seen: host_key });
            }
            let known = self.with(|s| {
                s.faults.any_key
                    || s.of("os-keypairs").iter().any(|k| k["public_key"] == key.public)
            });
            if !known || user != "cirros" {
                let deaf = self.with(|s| s.faults.hangs_up_on_other_keys);
                return Err(match deaf {
                    true => Refusal::NotYet(Error::lab("the connection is lost")),
                    false => Refusal::Key(Error::lab("the key was refused")),
                });
            }
            Ok(Box::new(Inside { mock: self.clone(), host_key }) as Box<dyn Shell>)
        })
    }
}

struct Inside {
    mock: Mock,
    host_key: HostKey,
}

impl Shell for Inside {
    fn host_key(&self) -> HostKey {
        self.host_key.clone()
    }
    fn run<'a>(&'a mut self, command: &'a str) -> Later<'a, Result<Ran>> {
        Box::pin(async move {
            let stdout = self.mock.with(|s| s.run(command));
            Ok(Ran { status: Some(0), stdout, stderr: String::new() })
        })
    }
}
