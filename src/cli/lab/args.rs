//! `stackproof lab`: what can be asked of a lab that runs.

use crate::cli::args::{AccelChoice, OnOff, Virtualization};
use crate::supervisor::fault::{FaultRequest, PortName};
use clap::{Args, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct Lab {
    /// Which lab [default: the one that is there; for `up` the name in the lab file]
    #[arg(long, global = true, value_name = "NAME")]
    pub name: Option<String>,
    #[command(subcommand)]
    pub verb: LabVerb,
}

const AFTER: &str = "\
A lab runs in a process of its own until `stackproof lab down`; several run at once, each by its
name. Killing that process ends its machines; the next command removes what it left.

Examples:
  stackproof lab up --lab two-node --provision
  stackproof lab exec openstack1 -- systemctl --failed
  stackproof lab rc && . ./openrc && openstack server list
  stackproof lab down";

#[derive(Debug, Subcommand)]
pub enum LabVerb {
    /// Start a lab and return when its nodes answer
    ///
    /// Ctrl-C until then takes the half-made lab down again.
    Up(Up),
    /// The process that owns a lab
    #[command(hide = true)]
    Own(Up),
    /// End a lab: its machines, its network and its files
    Down,
    /// Show all labs: name, state, owner's process
    Ls {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one lab: nodes, addresses, networks, forwards, or how it ended
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Log in on a node with the system's `ssh`; `stackproof lab exec` needs none
    ///
    /// The configuration that it uses also serves scp, rsync and Ansible: `ssh -F FILE NODE`, with
    /// the FILE that `stackproof lab status` names.
    Ssh {
        #[arg(value_name = "NODE")]
        node: String,
        /// Given on to ssh after the node: a command to run
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Run a command on a node: standard input, output, error and the exit code are its own
    ///
    /// The words of the command arrive as they are; for a pipe write `-- sh -c 'a | b'`. It runs
    /// as the lab's login user, who may `sudo`. When the command cannot be run at all, the exit
    /// code is one of stackproof's (see `stackproof --help`) and standard error says why.
    Exec {
        #[arg(value_name = "NODE")]
        node: String,
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Show a node's console with time stamps (seconds since the lab's start), and follow it
    ///
    /// It only shows: to type, use `stackproof lab ssh`. Ctrl-C leaves; the node goes on.
    Console {
        #[arg(value_name = "NODE")]
        node: String,
        /// So many lines of before (1000 are kept; the file has all)
        #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
        lines: usize,
        /// Show what is there and return
        #[arg(long)]
        no_follow: bool,
    },
    /// Copy a file or a folder to or from a node: one side is NODE:PATH
    ///
    /// A file arrives whole or not at all. A folder needs `tar` here and on the node.
    Cp {
        #[arg(value_name = "FROM")]
        from: String,
        #[arg(value_name = "TO")]
        to: String,
        /// Read or write on the node as root
        #[arg(long)]
        sudo: bool,
    },
    /// Listen on this machine's loopback and lead connections into the lab
    ///
    /// Ends with Ctrl-C, or with the lab when --background.
    Forward {
        /// A node, or any address of the lab's networks (a floating IP), and a port
        #[arg(value_name = "NODE:PORT", required_unless_present = "to")]
        target: Option<String>,
        /// The same by address
        #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "target")]
        to: Option<String>,
        /// Where to listen; port 0 is any free one
        #[arg(long, value_name = "127.0.0.1:PORT", default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Return at once; the lab's owner keeps listening
        #[arg(long)]
        background: bool,
    },
    /// Write an RC file and a clouds.yaml with which the stock `openstack` client, curl and a
    /// browser reach the lab's cloud from here, through the owner's HTTP proxy
    ///
    /// The catalogue's addresses are the lab's, so the RC file also sets http_proxy, with a
    /// password: others on this machine reach the same loopback. `lab_off` in that shell ends it.
    /// Both files are 0600; files that stackproof did not write stay.
    Rc {
        /// Where openrc and clouds.yaml are written [default: the current folder]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Replace an openrc or clouds.yaml that stackproof did not write
        #[arg(long)]
        force: bool,
    },
    /// Connect standard input and output to a port in the lab (ssh's ProxyCommand)
    #[command(hide = true)]
    Proxy { host: String, port: u16 },
    /// Save the whole lab, memory and disks; it goes on
    Checkpoint {
        /// A name (kept in the store's checkpoints/), or the path of a folder to be made
        #[arg(value_name = "NAME|DIR")]
        checkpoint: String,
    },
    /// Take a running lab back to a checkpoint (`lab up --restore` starts one from it)
    Restore {
        #[arg(value_name = "NAME|DIR")]
        checkpoint: String,
    },
    /// Disturb the lab: cables, machines, the wire
    #[command(subcommand)]
    Fault(FaultRequest),
    /// Capture a network or a port as pcapng, until Ctrl-C
    Capture {
        #[arg(value_name = "NETWORK|NODE/NETWORK")]
        what: PortName,
        /// Written anew (0600); `-` is standard output, for `| wireshark -k -i -`
        #[arg(long, short, value_name = "FILE.pcapng")]
        output: PathBuf,
    },
}

#[derive(Args, Clone, Debug)]
pub struct Up {
    /// The lab to boot: a file, or the name of one in vmtests/labs/ [default: two-node]. With
    /// --restore: the lab whose checkpoint is meant
    #[arg(long, value_name = "FILE")]
    pub lab: Option<String>,
    /// Instead of booting, continue from a checkpoint: a name from `lab checkpoint`, its folder, or
    /// a stage from `stackproof cache ls` (`cloud-ready`)
    #[arg(long, value_name = "NAME|DIR|STAGE", conflicts_with = "provision")]
    pub restore: Option<String>,
    /// Provision OpenStack on the nodes once they answer
    #[arg(long)]
    pub provision: bool,
    /// Do not wait for other labs to make room: fail at once
    #[arg(long)]
    pub no_wait: bool,
    /// The accelerator of the nodes [default: the one that is measured to be faster]
    #[arg(long, value_name = "ACCELERATOR")]
    pub accel: Option<AccelChoice>,
    /// Whether instances run under KVM inside the nodes [default: on where it can be had]. A restored
    /// lab keeps what it had
    #[arg(long, value_name = "STATE", conflicts_with = "restore")]
    pub nested: Option<OnOff>,
    /// Own the lab in this process: it ends with Ctrl-C
    #[arg(long)]
    pub foreground: bool,
    /// Print the status as one JSON object when the lab is up
    #[arg(long)]
    pub json: bool,
}

impl Up {
    pub fn virtualization(&self) -> Virtualization {
        Virtualization { accel: self.accel, nested: self.nested }
    }

    /// The lab to boot.
    pub fn lab(&self) -> &str {
        self.lab.as_deref().unwrap_or("two-node")
    }
}
