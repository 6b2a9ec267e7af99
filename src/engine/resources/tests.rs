//! Every kind: absent, applied, as declared; changed by hand, named, mended.

use super::testing::{me, root, roots};
use super::*;
use crate::engine::resource::{Script, Verdict};
use crate::secret::Secret;

#[tokio::test]
async fn a_file_is_made_with_its_parents_and_mended_when_changed_by_hand() {
    for root in roots() {
        let (user, group) = me();
        let file = File::new("/etc/a dir/it's.conf", "one\ntwo\n").mode(0o640).owner(user, group);
        assert_eq!(root.converges(&file).await, ["absent"]);
        assert_eq!(root.get("/etc/a dir/it's.conf"), "one\ntwo\n");
        assert_eq!(root.mode("/etc/a dir/it's.conf"), 0o640);
        root.put("/etc/a dir/it's.conf", "one\nTWO\n");
        assert_eq!(root.converges(&file).await, ["content: line 2: `TWO` -> `two`"]);
    }
}

#[tokio::test]
async fn a_files_mode_is_mended_without_rewriting_it() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    for root in roots() {
        let file = File::new("/f", "x").mode(0o600);
        root.put("/f", "x");
        std::fs::set_permissions(root.path("/f"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let inode = std::fs::metadata(root.path("/f")).unwrap().ino();
        assert_eq!(root.converges(&file).await, ["mode: 0644 -> 0600"]);
        assert_eq!(std::fs::metadata(root.path("/f")).unwrap().ino(), inode);
    }
}

#[tokio::test]
async fn a_binary_file_arrives_byte_for_byte_and_empty_ones_are_files_too() {
    for root in roots() {
        let all: Vec<u8> = (0..=255).collect();
        root.converges(&File::new("/b", all.clone())).await;
        assert_eq!(std::fs::read(root.path("/b")).unwrap(), all);
        root.put("/b", [255u8, 0]);
        assert_eq!(root.converges(&File::new("/b", all)).await, ["content: differs"]);
        root.converges(&File::new("/empty", "")).await;
    }
}

#[tokio::test]
async fn a_secret_file_is_private_and_shown_nowhere() {
    for root in roots() {
        let file = File::secret("/k", "hunter2hunter2");
        root.converges(&file).await;
        assert_eq!(root.mode("/k"), 0o600);
        root.put("/k", "other");
        assert_eq!(root.converges(&file).await, ["content: differs"]);
        let script = file.apply("absent\n");
        assert!(!format!("{file:?} {script:?}").contains("hunter2"), "{file:?} {script:?}");
        assert!(!script.shell.contains("hunter2"));
    }
}

#[tokio::test]
async fn a_directory_in_a_files_place_is_refused_not_removed() {
    for root in roots() {
        std::fs::create_dir(root.path("/d")).unwrap();
        let file = File::new("/d", "x");
        let sight = root.look(&file).await;
        assert_eq!(sight.verdict, Verdict::Differs(vec!["is not a regular file".into()]));
        let piece = root.apply(&file, &sight.seen).await;
        assert_eq!(piece.status, 65);
        assert_eq!(piece.stderr_tail(1), ["/d is not a regular file"]);
    }
}

#[tokio::test]
async fn a_directory_is_made_and_its_mode_mended() {
    for root in roots() {
        let directory = Directory::new("/var/lib/x").mode(0o700);
        assert_eq!(root.converges(&directory).await, ["absent"]);
        assert_eq!((root.mode("/var/lib"), root.mode("/var/lib/x")), (0o755, 0o700));
        root.converges(&Directory::new("/var/lib/x").mode(0o2750)).await;
        assert_eq!(root.converges(&directory).await, ["mode: 2750 -> 0700"]);
    }
}

#[tokio::test]
async fn a_symlink_is_made_and_turned() {
    for root in roots() {
        let link = SymLink::new("/etc/neutron/plugin.ini", "plugins/ml2.ini");
        assert_eq!(root.converges(&link).await, ["absent -> plugins/ml2.ini"]);
        root.converges(&SymLink::new("/etc/neutron/plugin.ini", "other")).await;
        assert_eq!(root.converges(&link).await, ["points to: other -> plugins/ml2.ini"]);
    }
}

#[tokio::test]
async fn an_ini_file_keeps_what_is_not_asked_for_and_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    for root in roots() {
        let text = "# héad\n[DEFAULT]\n#my_ip = <none>\ndebug = true\n[a]\nx = 1\n";
        root.put("/etc/nova.conf", text);
        let mode = std::fs::Permissions::from_mode(0o604);
        std::fs::set_permissions(root.path("/etc/nova.conf"), mode).unwrap();
        let ini = Ini::new("/etc/nova.conf")
            .set("DEFAULT", "my_ip", "192.0.2.1")
            .set("database", "connection", Secret::new("mysql://hunter2hunter2"))
            .set("a", "x", 2)
            .unset("DEFAULT", "debug");
        assert_eq!(
            root.converges(&ini).await,
            [
                "[DEFAULT] my_ip: absent -> 192.0.2.1",
                "[database] connection: absent",
                "[a] x: 1 -> 2",
                "[DEFAULT] debug: to be removed"
            ]
        );
        assert_eq!(
            root.get("/etc/nova.conf"),
            "# héad\n[DEFAULT]\n#my_ip = <none>\nmy_ip = 192.0.2.1\n[a]\nx = 2\n\n\
             [database]\nconnection = mysql://hunter2hunter2\n"
        );
        assert_eq!(root.mode("/etc/nova.conf"), 0o604);
        let changed = root.get("/etc/nova.conf").replace("hunter2hunter2", "by-hand-secret");
        root.put("/etc/nova.conf", changed);
        assert_eq!(root.converges(&ini).await, ["[database] connection: differs"]);
        assert!(!format!("{ini:?}").contains("hunter2"), "{ini:?}");
    }
}

#[tokio::test]
async fn an_ini_file_that_is_a_link_stays_one() {
    for root in roots() {
        root.put("/etc/real.conf", "[a]\n");
        std::os::unix::fs::symlink("real.conf", root.path("/etc/link.conf")).unwrap();
        root.converges(&Ini::new("/etc/link.conf").set("a", "x", "1")).await;
        assert_eq!(root.get("/etc/real.conf"), "[a]\nx = 1\n");
        assert!(root.path("/etc/link.conf").is_symlink());
    }
}

#[tokio::test]
async fn an_env_file_is_quoted_so_that_a_shell_reads_it_back() {
    for root in roots() {
        root.put("/etc/default/etcd", "# c\nETCD_NAME=old # no\nDUP=1\nDUP=2\n");
        let env = EnvFile::new("/etc/default/etcd")
            .set("ETCD_NAME", "controller")
            .set("DUP", "3")
            .set("ODD", "a \"b\" $c `d` \\e");
        let lines = root.converges(&env).await;
        assert_eq!(lines[1..], ["DUP: set 2 times", "ODD: absent -> a \"b\" $c `d` \\e"]);
        let out = std::process::Command::new("sh")
            .args(["-c", ". \"$1\"; printf %s \"$ETCD_NAME/$DUP/$ODD\"", "-"])
            .arg(root.path("/etc/default/etcd"))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "controller/3/a \"b\" $c `d` \\e");
    }
}

#[tokio::test]
async fn lines_are_appended_and_never_overwrite() {
    for root in roots() {
        root.put("/k", "ssh-rsa AAAA theirs");
        let lines = Lines::new("/k").line("ssh-ed25519 BBBB ours").mode(0o600);
        let said = root.converges(&lines).await;
        assert_eq!(said.last().unwrap(), "missing line: ssh-ed25519 BBBB ours");
        assert_eq!(root.get("/k"), "ssh-rsa AAAA theirs\nssh-ed25519 BBBB ours\n");
        root.put("/m", "-l 127.0.0.1\n-m 64\n-l 0.0.0.0\n");
        let listen = Lines::new("/m").line("-l 127.0.0.1").line("-l ::1").exclusive("-l ");
        root.converges(&listen).await;
        assert_eq!(root.get("/m"), "-l 127.0.0.1\n-m 64\n-l ::1\n");
    }
}

#[tokio::test]
async fn a_block_goes_to_the_end_and_is_mended_in_its_place() {
    for root in roots() {
        root.put("/etc/profile", "first");
        let block = Block::new("/etc/profile", "locale", "export LANG=en_US.utf-8");
        assert_eq!(root.converges(&block).await, ["block locale: absent"]);
        let made = "first\n# BEGIN stackproof locale\nexport LANG=en_US.utf-8\n\
                    # END stackproof locale\n";
        assert_eq!(root.get("/etc/profile"), made);
        root.put("/etc/profile", made.replace("LANG=en", "LANG=de") + "last\n");
        assert_eq!(root.converges(&block).await, ["block locale: differs"]);
        assert_eq!(root.get("/etc/profile"), format!("{made}last\n"));
    }
}

#[tokio::test]
async fn hosts_names_resolve_to_one_address_only() {
    for root in roots() {
        root.put("/etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1 openstack1 old # c\n");
        let hosts = Hosts::new()
            .entry([192, 168, 103, 11], ["openstack1", "controller"])
            .entry([192, 168, 103, 12], ["openstack2"]);
        root.converges(&hosts).await;
        assert_eq!(
            root.get("/etc/hosts"),
            "127.0.0.1\tlocalhost\n127.0.1.1\told # c\n\
             192.168.103.11\topenstack1 controller\n192.168.103.12\topenstack2\n"
        );
        root.put("/etc/hosts", root.get("/etc/hosts").replace("103.12", "103.99"));
        let said = root.converges(&hosts).await;
        assert!(said[0].contains("192.168.103.99\topenstack2"), "{said:?}");
    }
}

#[tokio::test]
async fn packages_are_asked_for_once_and_only_the_missing_are_installed() {
    for root in roots() {
        root.put("/installed", "ii  chrony\nrc  removed\n");
        root.fake(
            "dpkg-query",
            "shift 3; for n; do while read -r s p; do [ \"$p\" = \"$n\" ] && echo \"$s  $p\"; done \
             <\"$ROOT/installed\"; done; exit 1",
        );
        root.fake(
            "apt-get",
            "case \"$*\" in *update*) exit 0;; esac; while [ \"$1\" != install ]; do shift; done; \
             shift; for n; do echo \"ii  $n\" >>\"$ROOT/installed\"; echo \"$n\" >>\"$ROOT/log\"; done",
        );
        let packages = Package::new(["chrony", "etcd-server", "removed"]);
        assert_eq!(
            root.converges(&packages).await,
            ["etcd-server: not installed", "removed: not installed"]
        );
        assert_eq!(root.get("/log"), "etcd-server\nremoved\n");
    }
}

#[tokio::test]
async fn units_are_masked_whether_they_exist_or_not_and_stopped_first() {
    for root in roots() {
        root.put("/active", "iscsid.socket loaded active listening x\n");
        root.fake(
            "systemctl",
            r#"verb= ; for a; do case $a in -*) ;; *) [ -n "$verb" ] && set -- "$@" || { verb=$a; };; esac; done
case "$*" in
*list-units*) while read -r l; do echo "$l"; done <"$ROOT/active";;
*stop*) echo "stop" >>"$ROOT/log"; : >"$ROOT/active";;
*mask*) echo "mask" >>"$ROOT/log"
  for u; do case $u in *.service|*.socket) mkdir -p "$ROOT/etc/systemd/system"
    ln -sf /dev/null "$ROOT/etc/systemd/system/$u";; esac; done;;
esac"#,
        );
        let masked = Masked::new(["keepalived", "iscsid.socket"]);
        assert_eq!(
            root.converges(&masked).await,
            [
                "keepalived.service: not masked",
                "iscsid.socket: not masked",
                "iscsid.socket: running"
            ]
        );
        assert_eq!(root.get("/log"), "stop\nmask\n");
    }
}

#[tokio::test]
async fn the_hostname_holds_now_and_at_boot() {
    for root in roots() {
        root.put("/proc/sys/kernel/hostname", "localhost\n");
        root.put("/etc/x", "");
        let hostname = Hostname::new("openstack1");
        assert_eq!(
            root.converges(&hostname).await,
            ["now: localhost -> openstack1", "at boot:  -> openstack1"]
        );
    }
}

#[tokio::test]
async fn a_locale_is_compiled_and_becomes_the_default() {
    for root in roots() {
        root.put("/etc/debian_version", "13\n");
        root.put("/etc/default/x", "");
        root.put("/etc/locale.gen", "# none\n");
        root.fake("locale", "echo C.utf8; [ -e \"$ROOT/made\" ] && echo en_US.utf8; true");
        root.fake("localedef", "echo \"$*\" >\"$ROOT/made\"");
        let locale = Locale::new("en_US.UTF-8");
        assert_eq!(root.converges(&locale).await, ["not generated", "LANG: absent -> en_US.UTF-8"]);
        assert_eq!(root.get("/made"), "-i en_US -f UTF-8 en_US.UTF-8\n");
        assert_eq!(root.get("/etc/locale.gen"), "# none\nen_US.UTF-8 UTF-8\n");
    }
}

#[tokio::test]
async fn kernel_parameters_and_modules_hold_now_and_at_boot() {
    let root = root();
    root.put("/proc/sys/net/ipv4/ip_forward", "0\n");
    let sysctl = Sysctl::new("net.ipv4.ip_forward", "1");
    assert_eq!(root.converges(&sysctl).await, ["now: 0 -> 1", "at boot: not set to 1"]);
    root.put("/proc/sys/net/ipv4/ip_forward", "0\n");
    assert_eq!(root.converges(&sysctl).await, ["now: 0 -> 1"]);
    root.fake("modprobe", "mkdir -p \"$ROOT/sys/module/br_netfilter\"");
    let module = KernelModule::new("br-netfilter");
    assert_eq!(root.converges(&module).await, ["not loaded", "not loaded at boot"]);
}

#[tokio::test]
async fn a_user_is_made_and_joins_groups() {
    let root = root();
    root.fake("getent", "[ -e \"$ROOT/u\" ] && cat \"$ROOT/u\"");
    root.fake("id", "cat \"$ROOT/g\"");
    root.fake(
        "useradd",
        "echo 'stack:x:1000:1000::/opt/stack:/bin/bash' >\"$ROOT/u\"; echo stack kvm >\"$ROOT/g\"; \
         echo \"$*\" >\"$ROOT/log\"",
    );
    root.fake("usermod", "echo stack kvm >\"$ROOT/g\"; echo \"$*\" >\"$ROOT/log\"");
    let user = UserAccount::new("stack").home("/opt/stack").shell("/bin/bash").group("kvm");
    assert_eq!(root.converges(&user).await, ["absent"]);
    assert_eq!(root.get("/log"), "-m -d /opt/stack -s /bin/bash -G kvm stack\n");
    root.put("/g", "stack\n");
    assert_eq!(root.converges(&user).await, ["not in group kvm"]);
    assert_eq!(root.get("/log"), "-a -G kvm -d /opt/stack -s /bin/bash stack\n");
}

#[tokio::test]
async fn a_bridge_gets_its_ports_and_their_links_are_up() {
    let root = root();
    root.fake(
        "ovs-vsctl",
        r#"case "$*" in
*show*) [ -e "$ROOT/made" ] && printf '%s\n' 3f0a '    Bridge br-ex' '        Port eth1' \
  '            Interface eth1' '    Bridge br-int' '        Port "patch"';;
*) echo "$*" >"$ROOT/made";;
esac; exit 0"#,
    );
    root.put("/sys/class/net/eth1/flags", "0x1002\n");
    root.fake("ip", "echo 0x1003 >\"$ROOT/sys/class/net/eth1/flags\"");
    let bridge = OvsBridge::new("br-ex").port("eth1");
    assert_eq!(
        root.converges(&bridge).await,
        ["absent", "port eth1: absent", "port eth1: link is down"]
    );
    assert_eq!(
        root.get("/made"),
        "--timeout=5 -- --may-exist add-br br-ex -- --may-exist add-port br-ex eth1\n"
    );
}

#[tokio::test]
async fn an_option_of_open_vswitch_is_set_and_another_value_is_named() {
    let root = root();
    root.fake(
        "ovs-vsctl",
        r#"case "$*" in
*get*other_config:max-revalidator) [ -e "$ROOT/set" ] && read -r l <"$ROOT/set" && echo "\"${l##*=}\"";;
*set*) echo "$*" >"$ROOT/set";;
esac; exit 0"#,
    );
    let option = OvsOption::new("max-revalidator", "10000");
    assert_eq!(root.converges(&option).await, ["absent -> 10000"]);
    assert_eq!(
        root.get("/set"),
        "--timeout=5 set Open_vSwitch . other_config:max-revalidator=10000\n"
    );
    root.put("/set", "other_config:max-revalidator=500\n");
    assert_eq!(root.converges(&option).await, ["500 -> 10000"]);
}

#[tokio::test]
async fn a_port_is_found_by_its_listener_and_not_by_an_established_connection() {
    for root in roots() {
        let tcp = "  sl  local_address rem_address   st\n   0: 0100007F:1388 00000000:0000 ";
        root.put("/proc/net/tcp", format!("{tcp}01 x\n"));
        let port = TcpPort::new(5000);
        let sight = root.look(&port).await;
        assert_eq!(sight.verdict, Verdict::Differs(vec!["nothing listens".into()]));
        root.put("/proc/net/tcp", format!("{tcp}0A x\n"));
        root.is_same(&port).await;
    }
}

/// A client that keeps accounts as MariaDB prints them.
const MARIADB: &str = r#"d=$ROOT/db; mkdir -p "$d"
while read -r l; do case $l in
"SELECT '@"*) l=${l#*\'}; echo "${l%%\'*}";;
"SELECT schema_name"*) n=${l#*= \'}; n=${n%%\'*}; [ -e "$d/$n" ] && echo "$n";;
"SHOW GRANTS FOR "*) w=${l#SHOW GRANTS FOR }; w=${w%;}; [ -e "$d/user" ] && cat "$d/user";;
"CREATE DATABASE"*) n=${l#*\`}; : >"$d/${n%%\`*}";;
"ALTER USER "*) h=${l##*PASSWORD }; echo "GRANT USAGE ON *.* TO \`k\`@\`%\` IDENTIFIED BY PASSWORD ${h%;}" >"$d/user";;
"GRANT ALL"*) n=${l#*\`}; echo "GRANT ALL PRIVILEGES ON \`${n%%\`*}\`.* TO \`k\`@\`%\`" >>"$d/user";;
esac; done; exit 0
"#;

#[tokio::test]
async fn databases_and_accounts_are_made_and_a_changed_password_is_found() {
    for root in roots() {
        let database = Database::new("keystone");
        let account = Account::new("k", "%", Secret::new("secret-one")).grant("keystone");
        root.fake("mariadb", "exit 1");
        let sight = root.look(&account).await;
        assert_eq!(sight.verdict, Verdict::Differs(vec!["MariaDB does not answer".into()]));
        root.fake("mariadb", MARIADB);
        assert_eq!(root.converges(&database).await, ["absent"]);
        assert_eq!(root.converges(&account).await, ["absent"]);
        let other = Account::new("k", "%", Secret::new("secret-two")).grant("keystone");
        assert_eq!(root.converges(&other).await, ["password: differs"]);
        assert_eq!(root.converges(&account).await, ["password: differs"]);
        let script = account.apply("");
        assert!(!format!("{account:?} {script:?}").contains("secret-one"));
        let sent = String::from_utf8(script.inputs[0].1.bytes().to_vec()).unwrap();
        assert!(!sent.contains("secret-one"), "{sent}");
    }
}

#[test]
fn the_password_hash_is_mariadbs() {
    // SELECT PASSWORD('password')
    let account = Account::new("k", "%", Secret::new("password"));
    let seen = "GRANT USAGE ON *.* TO `k`@`%` IDENTIFIED BY PASSWORD \
                '*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19'\n";
    assert_eq!(account.judge(seen), Verdict::Same);
}

#[tokio::test]
async fn what_a_broker_is_asked_reaches_it_whole_and_its_answer_comes_in_lines() {
    for root in roots() {
        root.fake(
            "rabbitmqctl",
            "cat >\"$ROOT/asked\"; printf '{ok, {stackproof,\\n \"a;a .*\"}}\\n'",
        );
        let ask = Script::new(rabbit_user::asked("{stackproof, \"it's\"}"));
        assert_eq!(root.run(ask).await.text().trim(), "a\na .*");
        assert_eq!(root.get("asked"), "{stackproof, \"it's\"}.\n");
    }
}

#[tokio::test]
async fn a_rabbit_user_is_judged_by_what_the_broker_says() {
    for root in roots() {
        root.fake(
            "rabbitmqctl",
            "read -r e; case $e in *add_user*) : >\"$ROOT/u\"; echo '{stackproof,ok,ok}';; *) \
             if [ -e \"$ROOT/u\" ]; then echo '{stackproof, ok,\n all}'; else echo '{stackproof,refused,absent}'; fi;; esac",
        );
        let user = RabbitUser::new("openstack", Secret::new("hunter2hunter2"));
        assert_eq!(root.converges(&user).await, ["absent"]);
        assert_eq!(
            user.judge("{ok, {stackproof,refused,missing}}"),
            Verdict::Differs(vec!["password: differs".into(), "permissions on /: differ".into()])
        );
        assert!(!user.judge("Error: unable to connect").is_same());
        let script = user.probe();
        assert!(!format!("{user:?} {script:?}{}", script.shell).contains("hunter2"));
    }
}
