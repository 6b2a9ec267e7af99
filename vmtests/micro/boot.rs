//! From power on to a login, with the seed that every node gets.

use super::test;
use crate::bench::{Bench, COMMAND, run};
use crate::registry::Test;
use stackproof::engine::ssh::{HostKey, Key, KeyType};
use stackproof::engine::transport::Shell;
use stackproof::error::Result;
use stackproof::lab::keys::SshKey;

pub const TESTS: &[Test] = &[
    test("boot::two_guests_take_our_seed_and_let_our_key_in", 2, || run(two_guests())),
    test("boot::a_wrong_host_key_and_a_wrong_login_are_refused", 1, || run(wrong_keys())),
];

async fn two_guests() -> Result<()> {
    let bench = Bench::new().await?;
    let lab = bench.start(&["a", "b"]).await?;
    for (node, address) in lab.nodes().iter().zip(["192.168.103.11/24", "192.168.103.12/24"]) {
        let ssh = bench.ssh(&lab, node)?;
        let client = ssh.client().await?;
        let key = client.host_key().expect("a key was shown");
        assert_eq!(key.key_data(), node.host_key.key_data(), "the key of the seed");
        let user = client.run("id -un", "");
        let user = bench.patience.within("who we are", COMMAND, &node.vm.death(), user).await?;
        assert_eq!(user.stdout, b"stack\n");
        assert_eq!(bench.ask(&ssh, node, "id -u").await?, "0", "the shell is root's");
        assert_eq!(bench.ask(&ssh, node, "hostname").await?, node.name());
        let shown = bench.ask(&ssh, node, "ip -o -4 addr show dev management").await?;
        assert!(shown.contains(address), "{shown}");
        let bare = bench
            .ask(&ssh, node, "cat /sys/class/net/external/mtu; ip -o -4 addr show dev external")
            .await?;
        assert_eq!(bare, "1400", "up, with the MTU of its network and without an address");
        assert!(node.vm.evidence().iter().any(|l| l.contains("login as 'stack'")));
    }
    lab.stop().await?;
    bench.assert_nothing_left();
    Ok(())
}

async fn wrong_keys() -> Result<()> {
    let bench = Bench::new().await?;
    let lab = bench.start(&["a"]).await?;
    let node = &lab.nodes()[0];
    let ours = Key::from_openssh(&lab.login_key().private_pem())?;
    let other = SshKey::ed25519("other")?.public().clone();
    let ssh = bench.ssh_with(&lab, node, ours, HostKey::Pinned(other))?;
    let error = ssh.exec(&["true"], Default::default(), None).await.unwrap_err();
    assert!(error.to_string().contains("host key"), "{error}");
    assert!(!stackproof::engine::ssh::is_lost(&error), "not worth a second try: {error}");

    let stranger = Key::generate(KeyType::Ed25519)?;
    let pinned = HostKey::Pinned(node.host_key.clone());
    let ssh = bench.ssh_with(&lab, node, stranger, pinned)?;
    let error = ssh.exec(&["true"], Default::default(), None).await.unwrap_err();
    assert!(error.to_string().contains("refused the key"), "{error}");
    // The guest is well: only the wrong ones were kept out.
    assert_eq!(bench.ask(&bench.ssh(&lab, node)?, node, "echo in").await?, "in");
    lab.stop().await
}
