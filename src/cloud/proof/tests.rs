//! The story against a small OpenStack in memory: told whole, and with each thing going wrong.

use super::*;
use crate::cloud::mock::{ADMIN_PASSWORD, Faults, Mock};
use crate::event::Events;
use crate::wait::{Death, Life};
use std::sync::LazyLock;
use tokio::sync::Barrier;

struct Told {
    outcome: Outcome,
    mock: Mock,
    events: Vec<Event>,
}

async fn told_with(mock: Mock, death: Death, change: impl FnOnce(&mut ProofInputs)) -> Told {
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), vec![7; 200_000]).unwrap();
    let (events, mut seen) = Events::channel();
    let mut inputs = mock.inputs(image.path(), events, death);
    change(&mut inputs);
    let outcome = prove(inputs, mock.world()).await.unwrap();
    let mut events = Vec::new();
    while let Ok(stamped) = seen.try_recv() {
        events.push(stamped.event);
    }
    Told { outcome, mock, events }
}

async fn told(faults: Faults) -> Told {
    told_with(Mock::with_faults(faults), Death::never(), |_| {}).await
}

impl Told {
    fn check(&self, name: &str) -> &Check {
        self.outcome.checks.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no `{name}`"))
    }

    /// `name` is the first failure, its evidence says `why`, and nothing later that stands on it
    /// passed.
    #[track_caller]
    fn fails_at(&self, name: &str, why: &str) {
        assert!(!self.outcome.passed());
        let first = self.outcome.first_failure().expect("something failed");
        assert_eq!(first.name, name, "{}", first.evidence);
        assert!(first.evidence.contains(why), "`{why}` is not in: {}", first.evidence);
        let mut broken = vec![name];
        for step in story::STORY {
            if step.needs.iter().any(|n| broken.contains(n)) {
                broken.push(step.name);
                let check = self.check(step.name);
                assert_eq!(check.status, Status::Skip, "{}", step.name);
                assert!(check.evidence.contains(name), "{}", check.evidence);
            }
        }
    }

    /// Nothing of the proof is left in the cloud.
    #[track_caller]
    fn left_nothing(&self) {
        self.mock.with(|s| {
            for kind in [
                "servers",
                "images",
                "flavors",
                "os-keypairs",
                "networks",
                "subnets",
                "routers",
                "ports",
                "floatingips",
            ] {
                assert!(s.of(kind).is_empty(), "{kind}: {:?}", s.of(kind));
            }
            let services = s.of("os-services");
            assert!(services.iter().all(|s| s["status"] == "enabled"), "{services:?}");
            let groups = s.of("security-groups").iter().filter(|g| g["project_id"] != "p-admin");
            assert_eq!(groups.count(), 0);
            assert_eq!((s.of("projects").len(), s.of("users").len()), (1, 1));
        });
    }
}

const CLEANUP: &str = "S3 everything deleted and seen gone";

#[tokio::test(start_paused = true)]
async fn a_cloud_that_works_passes_every_check_and_is_left_clean() {
    let told = told(Faults::default()).await;
    for check in &told.outcome.checks {
        assert_eq!(check.status, Status::Pass, "{}: {}", check.name, check.evidence);
    }
    assert!(told.outcome.passed());
    assert_eq!(told.outcome.checks.len(), story::STORY.len());
    told.left_nothing();
    let (name, console) = &told.outcome.logs[0];
    assert_eq!(name, "instance-console.log");
    assert!(console.contains("login as 'cirros'"));
    let named = |check: &str, text: &str| {
        let evidence = &told.check(check).evidence;
        assert!(evidence.contains(text), "{evidence}");
    };
    named("S3.7 ping answers once ICMP is let in", "TTL 63");
    named("S3.1 traffic crosses VXLAN", "VNI 7");
    named("S3.5 hard reboot", "boot-id-".get(..8).unwrap());
    named("S4.3 flavors are the administrator's", "os-flavor-manage:create");
}

impl Told {
    /// The checks as they ended.
    fn ended(&self) -> Vec<&str> {
        let checks = self.events.iter().filter_map(|e| match e {
            Event::Check(c) => Some(c.name.as_str()),
            _ => None,
        });
        checks.collect()
    }
}

#[tokio::test(start_paused = true)]
async fn every_check_is_one_event_and_comes_after_those_that_it_waits_for() {
    for faults in [Faults::default(), Faults { leaky: true, ..Faults::default() }] {
        let told = told(faults).await;
        let ended = told.ended();
        assert_eq!(ended.len(), story::STORY.len());
        let at = |name: &str| ended.iter().position(|n| *n == name).expect(name);
        for step in story::STORY {
            for before in step.needs.iter().chain(step.spares) {
                assert!(at(before) < at(step.name), "{before} < {}", step.name);
            }
        }
        assert_eq!(*ended.last().unwrap(), CLEANUP);
        let told: Vec<&str> = told.outcome.checks.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(told, story::STORY.iter().map(|s| s.name).collect::<Vec<_>>());
    }
}

/// Two checks that pass only at once, one that spares a failed one, and one that needs it.
#[tokio::test(start_paused = true)]
async fn independent_checks_run_at_once_and_a_spared_one_may_fail() {
    static MEET: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(2));
    async fn meet(_: &Context) -> Result<Finding> {
        MEET.wait().await;
        Ok(Finding::Pass("met".into()))
    }
    async fn fail(_: &Context) -> Result<Finding> {
        Err(Error::new(Kind::Proof, "on purpose"))
    }
    async fn pass(_: &Context) -> Result<Finding> {
        Ok(Finding::Pass("seen".into()))
    }
    const STORY: &[Step] = story::story! {
        "one" => meet;
        "other" => meet;
        "broken" => fail;
        "careful" sparing ["broken"] => pass;
        "on it" after ["broken"] => pass;
        "last" => pass;
    };
    let mock = Mock::new();
    let inputs = mock.inputs("x".as_ref(), Events::silent(), Death::never());
    let outcome = tell(STORY, inputs, mock.world()).await.unwrap();
    let ended: Vec<Status> = outcome.checks.iter().map(|c| c.status).collect();
    use Status::{Fail, Pass, Skip};
    assert_eq!(ended, [Pass, Pass, Fail, Pass, Skip, Pass]);
    assert_eq!(outcome.first_failure().unwrap().name, "broken");
}

#[tokio::test(start_paused = true)]
async fn no_secret_is_in_any_event_check_or_log() {
    let told = told(Faults { other_nonce: true, ..Faults::default() }).await;
    let everything = format!("{:?}{:?}", told.outcome, told.events);
    assert!(everything.contains("S4.4 catalog"));
    for secret in [ADMIN_PASSWORD, "gAAAA"] {
        assert!(!everything.contains(secret), "{secret}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_kept_cloud_keeps_its_public_network_and_proves_again() {
    let mock = Mock::new();
    for round in ["created", "found"] {
        let told = told_with(mock.clone(), Death::never(), |i| i.keep_public = true).await;
        assert!(told.outcome.passed(), "{:?}", told.outcome.first_failure());
        assert!(told.check("S3.1 provider network public").evidence.starts_with(round));
    }
    assert_eq!(mock.with(|s| s.of("networks").len()), 1);
}

#[tokio::test(start_paused = true)]
async fn an_image_that_lives_in_memory_may_show_a_new_host_key_after_the_reboot() {
    let mock = Mock::with_faults(Faults { new_host_key_after_reboot: true, ..Faults::default() });
    let told = told_with(mock, Death::never(), |i| i.image.keeps_host_key = false).await;
    assert!(told.outcome.passed(), "{:?}", told.outcome.first_failure());
    assert!(told.check("S3.5 hard reboot").evidence.contains("a new host key"));
}

#[tokio::test(start_paused = true)]
async fn one_node_alone_has_no_tunnel_and_passes_without_it() {
    let told = told_with(Mock::new(), Death::never(), |i| {
        i.hypervisors.insert("openstack2".into(), i.network_tunnel);
    })
    .await;
    assert!(told.outcome.passed(), "{:?}", told.outcome.first_failure());
    assert!(told.outcome.error(&Death::never()).is_none());
    let vxlan = "S3.1 traffic crosses VXLAN";
    assert!(told.outcome.checks.iter().all(|c| c.name != vxlan), "never counted as passed");
    let [(name, reason)] = &told.outcome.left_out[..] else { panic!("{:?}", told.outcome) };
    assert_eq!(name, vxlan);
    assert!(reason.contains("only hypervisor"), "{reason}");
}

/// The network node is a hypervisor too, and the one that the scheduler would take.
async fn told_of_two_hypervisors(faults: Faults) -> Told {
    let mock = Mock::with_faults(faults);
    mock.with(|s| s.add_hypervisor("openstack1"));
    told_with(mock, Death::never(), |i| {
        i.compute_services.push(Daemon::new("nova-compute", "openstack1"));
        i.hypervisors.insert("openstack1".into(), i.network_tunnel);
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_kept_from_a_network_node_that_is_one_of_several_hypervisors() {
    let told = told_of_two_hypervisors(Faults::default()).await;
    assert!(told.outcome.passed(), "{:?}", told.outcome.first_failure());
    assert_eq!(told.outcome.checks.len(), story::STORY.len());
    let host = &told.check("S3.3 server active on its host").evidence;
    assert!(host.contains("ACTIVE on openstack2"), "{host}");
    let cleared = &told.check(CLEANUP).evidence;
    assert!(cleared.contains("nova-compute on openstack1 disabled"), "{cleared}");
    told.left_nothing();
}

#[tokio::test(start_paused = true)]
async fn a_scheduler_that_takes_a_disabled_host_is_found() {
    let faults = Faults { disabled_hosts_used: true, ..Faults::default() };
    let told = told_of_two_hypervisors(faults).await;
    let why = "runs on `openstack1` instead of `openstack2`";
    told.fails_at("S3.3 server active on its host", why);
    told.left_nothing();
}

#[tokio::test(start_paused = true)]
async fn a_hypervisor_that_stays_disabled_is_left_over() {
    let faults = Faults { stays_disabled: true, ..Faults::default() };
    let told = told_of_two_hypervisors(faults).await;
    told.fails_at(CLEANUP, "nova-compute on openstack1 disabled");
    assert_eq!(told.outcome.count(Status::Fail), 1);
}

#[tokio::test]
async fn where_another_hypervisor_could_have_the_instance_the_tunnel_has_its_place() {
    let mock = Mock::new();
    let mut inputs = mock.inputs("x".as_ref(), Events::silent(), Death::never());
    let left_out = |inputs: &ProofInputs| {
        story::STORY.iter().filter(|step| story::no_place(step, inputs).is_some()).count()
    };
    assert_eq!(left_out(&inputs), 0);
    inputs.network_tunnel = inputs.hypervisors["openstack2"];
    assert_eq!(left_out(&inputs), 1);
    inputs.hypervisors.insert("openstack3".into(), [192, 168, 103, 13].into());
    assert_eq!(left_out(&inputs), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failure_has_the_kind_of_whose_fault_it_is() {
    let told = told(Faults { other_nonce: true, ..Faults::default() }).await;
    let e = told.outcome.error(&Death::never()).unwrap();
    assert_eq!(e.kind(), Kind::Proof);
    assert!(e.message().contains("S3.9"), "{e}");
    // The same failure while a machine is dead says nothing of the cloud.
    let (life, death) = Life::new();
    life.ends("QEMU of openstack2 was killed by signal 9");
    let e = told.outcome.error(&death).unwrap();
    assert_eq!(e.kind(), Kind::Lab);
    assert!(e.message().contains("QEMU of openstack2 was killed"), "{e}");
    assert!(e.evidence_lines()[0].contains("S3.9"), "{:?}", e.evidence_lines());
    // A file of ours that cannot be read is not the cloud's failure.
    let missing = |i: &mut ProofInputs| i.image.path = "/nonexistent/image.qcow2".into();
    let told = told_with(Mock::new(), Death::never(), missing).await;
    let e = told.outcome.error(&Death::never()).unwrap();
    assert_eq!(e.kind(), Kind::Image);
    assert!(e.message().contains("S4.7"), "{e}");
}

/// A fault, the check that must find it, and words of its evidence.
macro_rules! finds {
    ($($test:ident: $fault:ident = $value:expr => $check:literal, $why:literal;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $test() {
            let told = told(Faults { $fault: $value, ..Faults::default() }).await;
            told.fails_at($check, $why);
            told.left_nothing();
        }
    )*};
}

finds! {
    a_namespace_that_was_not_made_is_found: no_dhcp_namespace = true =>
        "S3.6 namespaces of router and DHCP", "no namespace qdhcp-";
    an_instance_that_answers_the_router_without_a_rule_is_found: leaky_inside = true =>
        "S3.7 silence in the router's namespace", "though no rule lets it in";
    a_neighbour_that_the_router_does_not_find_makes_silence_worthless: neighbour_incomplete = true =>
        "S3.7 silence in the router's namespace", "INCOMPLETE";
    another_machine_behind_the_fixed_address_is_found: another_inside = true =>
        "S3.9 ping and SSH from the router's namespace", "SSH returned `boot-id-9`";
    a_missing_service_is_found: no_placement = true =>
        "S4.4 catalog", "`placement` is not in the catalogue";
    a_dead_agent_is_found: dead_agent = true =>
        "S4.8 network agents alive", "neutron-openvswitch-agent on openstack2 is XXX";
    a_flavor_made_by_a_member_is_found: anyone_makes_flavors = true =>
        "S4.3 flavors are the administrator's", "ordinary member could create";
    an_image_that_glance_rejects_is_found: image_killed = true =>
        "S4.7 private image", "glance made it killed";
    an_image_that_everybody_sees_is_found: image_public = true =>
        "S4.7 no stranger sees the image", "another project sees";
    an_image_that_its_owner_does_not_see_either_is_not_proven_private: image_lost = true =>
        "S4.7 no stranger sees the image", "its owner does not see";
    an_image_changed_on_its_way_is_found: image_corrupted = true =>
        "S4.7 private image", "sha512 differs";
    a_server_without_a_host_is_told_in_novas_words: no_valid_host = true =>
        "S4.8 instance's port active", "No valid host was found";
    a_server_on_the_wrong_host_is_found: wrong_host = true =>
        "S3.3 server active on its host", "runs on `openstack1` instead of `openstack2`";
    a_port_that_cannot_bind_ends_the_wait: binding_failed = true =>
        "S4.8 instance's port active", "failed to bind on host `openstack2`";
    an_image_that_does_not_boot_ends_the_wait: no_bootable_device = true =>
        "S4.11 console log", "the image is no disk image";
    a_guest_that_never_comes_up_is_found: never_up = true =>
        "S4.11 console log", "login banner";
    a_floating_ip_that_neutron_gave_up_ends_the_wait: floating_error = true =>
        "S3.8 floating IP", "it went to ERROR";
    an_answer_that_should_be_silence_is_found: leaky = true =>
        "S3.7 silence without ingress rules", "10 of 10 pings";
    silence_beside_a_dead_control_is_not_counted: router_dies = true =>
        "S3.7 silence without ingress rules", "proves nothing";
    silence_of_a_guest_that_panicked_is_not_counted: panics_while_silent = true =>
        "S3.7 silence without ingress rules", "proves nothing";
    an_answer_past_the_router_is_found: ttl = Some(64) =>
        "S3.7 ping answers once ICMP is let in", "TTL 64";
    ssh_open_without_its_rule_is_found: ssh_open_with_icmp = true =>
        "S3.7 ping answers once ICMP is let in", "only ICMP was let in";
    a_wrong_nonce_is_found: other_nonce = true =>
        "S3.9 SSH login returns the nonce", "does not return the nonce";
    a_door_open_to_any_key_is_found: any_key = true =>
        "S3.9 SSH login returns the nonce", "never got is let in";
    a_refusal_that_was_never_heard_is_not_counted: hangs_up_on_other_keys = true =>
        "S3.9 SSH login returns the nonce", "another key to be refused";
    lost_large_packets_are_found: small_packets_only = true =>
        "S3.9 SSH login returns the nonce", "MTU";
    a_wrong_mtu_inside_is_found: guest_mtu = Some(1500) =>
        "S4.12 guest sees its address and MTU", "MTU 1500 inside, expected 1450";
    metadata_that_does_not_answer_is_found: no_metadata_address = true =>
        "S4.11 gateway and metadata answer inside", "local-ipv4 ``";
    traffic_that_avoids_the_tunnel_is_found: no_vxlan = true =>
        "S3.1 traffic crosses VXLAN", "saw 0 to the instance";
    a_fixed_address_that_is_known_outside_is_found: fixed_known_outside = true =>
        "S3.6 fixed address silent outside", "ARP for it was answered";
    a_fixed_address_that_leaves_the_router_is_found: fixed_leaks = true =>
        "S3.6 fixed address silent outside", "no packet from or to 10.5.5.12";
    an_external_network_that_is_not_seen_proves_nothing: blind_outside = true =>
        "S3.6 fixed address silent outside", "proves nothing";
    a_wrong_count_of_addresses_is_found: miscounted = true =>
        "S4.12 address availability", "the count says";
    a_reboot_that_was_none_is_found: reboot_does_nothing = true =>
        "S3.5 hard reboot", "the old boot still answers";
    another_host_key_after_the_reboot_ends_the_wait: new_host_key_after_reboot = true =>
        "S3.5 hard reboot", "another machine answers";
    another_instance_after_the_reboot_is_found: another_after_reboot = true =>
        "S3.5 hard reboot", "another instance answers";
    a_panic_after_the_reboot_ends_the_wait: panics_after_reboot = true =>
        "S3.5 hard reboot", "the guest's kernel panicked";
    an_instance_that_does_not_come_back_is_found: never_back = true =>
        "S3.5 hard reboot", "SSH after the hard reboot";
    a_floating_ip_that_still_answers_is_found: floating_sticks = true =>
        "S4.12 silence without floating IP", "still answers ping";
}

#[tokio::test(start_paused = true)]
async fn a_thing_that_cannot_be_deleted_is_a_failure() {
    let told = told(Faults { network_stays: true, ..Faults::default() }).await;
    told.fails_at(CLEANUP, "network intnet");
    assert_eq!(told.outcome.count(Status::Fail), 1);
    assert!(told.check(CLEANUP).evidence.contains("the database is locked"));
}

#[tokio::test(start_paused = true)]
async fn a_stranger_that_stays_is_a_failure_and_is_deleted_at_the_end() {
    let told = told(Faults { user_stays_once: true, ..Faults::default() }).await;
    told.fails_at("S4.5 stranger deleted and seen gone", "is locked");
    assert_eq!(told.outcome.count(Status::Fail), 1);
    assert!(told.check(CLEANUP).evidence.contains("user stranger-"));
    told.left_nothing();
}

#[tokio::test(start_paused = true)]
async fn a_thing_that_nobody_asked_for_is_a_leftover() {
    let told = told(Faults { stray_port: true, ..Faults::default() }).await;
    told.fails_at(CLEANUP, "ports id-");
    told.left_nothing();
}

#[tokio::test(start_paused = true)]
async fn waits_end_at_once_when_a_machine_dies() {
    let (life, death) = Life::new();
    let mock = Mock::with_faults(Faults { never_up: true, ..Faults::default() });
    let start = Instant::now();
    let dying = async {
        // Dies while the console is waited for.
        let _ =
            tokio::time::timeout(std::time::Duration::from_secs(40), std::future::pending::<()>())
                .await;
        life.ends("openstack2: QEMU exited with status 1");
    };
    let (told, ()) = tokio::join!(told_with(mock, death, |_| {}), dying);
    told.fails_at("S4.11 console log", "openstack2: QEMU exited with status 1");
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
    assert_eq!(told.check(CLEANUP).status, Status::Fail);
}

#[tokio::test(start_paused = true)]
async fn a_cloud_that_never_answers_skips_everything_but_the_first_check() {
    let told = told_with(Mock::new(), Death::never(), |i| i.names.clear()).await;
    told.fails_at("S4.6 administrator's token", "no node is called `openstack1`");
    assert_eq!(told.outcome.count(Status::Fail), 1);
    assert_eq!(told.outcome.count(Status::Pass), 0);
    assert!(told.check(CLEANUP).evidence.contains("nothing had been made"));
}
