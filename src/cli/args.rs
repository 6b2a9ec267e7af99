//! The command line: what can be asked, with help texts that teach.

use crate::error::Kind;
use crate::lab::accel::Accel;
use crate::lab::spec::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Parser)]
#[command(
    name = "stackproof",
    version,
    about = "Boots a cluster of virtual machines, provisions OpenStack on it, and proves from \
             outside that it works",
    after_help = after_help(),
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// Where images are kept, by their content [default: $XDG_CACHE_HOME/stackproof]
    #[arg(long, global = true, value_name = "DIR")]
    pub store: Option<PathBuf>,

    /// The folder that holds images/ and vmtests/labs/ [default: the current folder where it holds
    /// both, else the copies inside this program]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// The Debian mirror that recipes are built from [default: the one in the host's apt
    /// configuration, else mmdebstrap's]
    #[arg(long, global = true, value_name = "URL")]
    pub debian_mirror: Option<String>,

    /// Show details too
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Boot the lab, provision OpenStack on it, and prove from outside that an instance works
    ///
    /// The phases: host (tools, memory, disk), images (fetched or built once), accelerator (KVM or
    /// TCG, whichever really is faster), boot, provision, second-run (must change nothing), nodes
    /// (lines changed by hand are mended; clocks, names, logins, stores), proof, leaks (no secret in
    /// any log), teardown. Nothing of the host's network is touched and nothing is left running.
    E2e(E2e),
    /// The images: what is known, what is in the store, and how it gets there
    #[command(subcommand)]
    Images(Images),
    /// This machine: what it has for running labs, and what it lacks
    #[command(subcommand)]
    Host(Host),
    /// The layers: labs as they stood at the stages of their making, which e2e begins from
    #[command(subcommand)]
    Cache(Cache),
    /// Measure: hashing, boot to SSH and the phases of the last e2e, beside their peers
    Bench(Bench),
    /// A lab to live in: start one, log in, copy, forward, disturb, save and restore it
    Lab(super::lab::args::Lab),
}

#[derive(Args, Clone, Debug)]
pub struct E2e {
    /// The lab to boot: a file, or the name of one in vmtests/labs/
    #[arg(long, value_name = "FILE", default_value = "two-node")]
    pub lab: String,

    /// The image of the instance: a name from `stackproof images list`, or any BIOS-bootable
    /// x86-64 qcow2 that does DHCP and EC2 metadata
    #[arg(long, value_name = "NAME|FILE.qcow2", default_value = "probe-guest")]
    pub instance_image: String,

    /// Who logs in to the instance; must be given with a FILE.qcow2, else the manifest says it
    #[arg(long, value_name = "USER")]
    pub instance_user: Option<String>,

    /// Leave the files of the run (disks, seeds, sockets) where they are. The machines still end
    /// with this process
    #[arg(long)]
    pub keep: bool,

    /// Before the proof, reboot each node in turn and see that it comes back whole by itself
    #[arg(long)]
    pub reboot: bool,

    /// Write the result as one JSON object to FILE (mode 0600, written whole or not at all)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Neither begin from a layer of an earlier run nor keep any: everything is done anew
    #[arg(long)]
    pub cold: bool,

    /// What layers may take of the disk, all together [default: half of what they take now and what
    /// is free; 12 GiB always stay free]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub layers_max: Option<u64>,

    /// Be refused at once, instead of waiting, when other labs have the memory or the processors
    #[arg(long)]
    pub no_wait: bool,

    #[command(flatten)]
    pub virtualization: Virtualization,

    /// Where consoles, journals and service logs are saved when something fails
    /// [default: a folder of this run in the store's logs/]
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
}

/// How nodes and instances are run. By default what is measured decides.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Virtualization {
    /// The accelerator of the nodes [default: the one that is measured to be faster]
    #[arg(long, value_name = "ACCELERATOR")]
    pub accel: Option<AccelChoice>,

    /// Whether instances run under KVM inside the nodes [default: on where it can be had]
    #[arg(long, value_name = "STATE")]
    pub nested: Option<OnOff>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelChoice {
    Kvm,
    Tcg,
}

impl From<AccelChoice> for Accel {
    fn from(choice: AccelChoice) -> Accel {
        match choice {
            AccelChoice::Kvm => Accel::Kvm,
            AccelChoice::Tcg => Accel::Tcg,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    On,
    Off,
}

impl Virtualization {
    pub fn accel(self) -> Option<Accel> {
        self.accel.map(Accel::from)
    }

    pub fn nested(self) -> Option<bool> {
        self.nested.map(|state| state == OnOff::On)
    }

    /// The same as words of a command line.
    pub fn words(self) -> Vec<String> {
        let word = |value: Option<clap::builder::PossibleValue>, option: &str| {
            value.map(|v| [option.to_owned(), v.get_name().to_owned()])
        };
        let accel = word(self.accel.and_then(|a| a.to_possible_value()), "--accel");
        let nested = word(self.nested.and_then(|n| n.to_possible_value()), "--nested");
        accel.into_iter().chain(nested).flatten().collect()
    }
}

#[derive(Debug, Subcommand)]
pub enum Images {
    /// Show every known image, its kind, size and whether it is in the store
    List,
    /// Download pinned images through their checksum into the store
    Fetch {
        /// Names from `stackproof images list`
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Build recipes from Debian packages (never twice from the same inputs)
    Build {
        /// Names from `stackproof images list`
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Write images of the store as folders that another machine imports
    ///
    /// Each becomes DIR/NAME with its files and SHA256SUMS.
    Export {
        /// Names from `stackproof images list`
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Where the folders are made
        #[arg(long, value_name = "DIR", default_value = ".")]
        to: PathBuf,
    },
    /// Bring in images that `export` wrote, instead of building or fetching them here
    ///
    /// A built image is accepted only when it was built from the same inputs as this program's
    /// recipe; else the inputs that differ are named. Its bytes are not built again: import from
    /// machines that you trust.
    Import {
        /// Folders with an image.json in them
        #[arg(required = true, value_name = "DIR")]
        folders: Vec<PathBuf>,
    },
    /// Hash what is in the store again and compare it with its checksum
    Verify {
        /// Names from `stackproof images list` [default: all that are in the store]
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Compare pinned images with the checksum files of their publishers
    ///
    /// Prints `current`, `changed` (another digest is published under the same name) or `gone` (the
    /// server has removed the image) for each, and exits 4 unless all are current.
    Check {
        /// Names from `stackproof images list`
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Write the newest build of a pinned image into its manifest: address, digest and size
    ///
    /// Only in a source tree (the current folder or --root). The publisher's checksum file decides
    /// the digest; its signature is not checked.
    Update {
        /// A name from `stackproof images list`
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Remove images that nothing names any more, used longest ago first
    ///
    /// These keep an image: a manifest (the pinned file; the build of a recipe as it stands), the
    /// disks of runs, cached stages and checkpoints in the store, and a running lab. A checkpoint
    /// in a folder of your own keeps none. Partial downloads stay for seven days.
    Gc {
        /// Stop when all images together take at most SIZE [default: remove all that nothing names]
        #[arg(long, value_name = "SIZE", value_parser = size)]
        max: Option<u64>,
        /// Show what would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Read the header of an image and say whether it is safe to boot
    Inspect {
        /// A name from `stackproof images list`, or a file
        #[arg(value_name = "NAME|FILE")]
        image: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum Cache {
    /// Show every layer: its stage, lab, size on disk, age, last use, key, and whether it would
    /// serve a run now
    Ls {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove layers, those used longest ago first; none that is in use
    Gc {
        /// Until the rest takes at most SIZE [default: half of what they take now and what is free]
        #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "all")]
        max: Option<u64>,
        /// All of them
        #[arg(long)]
        all: bool,
    },
    /// Say of every stage whether its layer would serve a run now, and else which input changed
    Why {
        /// The lab: a file, or the name of one in vmtests/labs/
        #[arg(long, value_name = "FILE", default_value = "two-node")]
        lab: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Host {
    /// Show tools with versions, accelerators with their measured speed, memory and disk, and how
    /// to get what is missing; exits 3 when a lab cannot run here
    ///
    /// What only building images needs may be missing: images can be imported.
    Check {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Install the missing tools with apt when root, else print the commands to run and exit 3
    Setup {
        /// Leave out what only building images needs
        #[arg(long)]
        run_only: bool,
    },
}

#[derive(Args, Clone, Debug)]
pub struct Bench {
    /// Where the results are written
    #[arg(long, value_name = "FILE", default_value = "target/bench/results.json")]
    pub json: PathBuf,
    /// The JSON of the e2e run whose phases are shown
    #[arg(long, value_name = "FILE", default_value = "target/e2e.json")]
    pub e2e: PathBuf,
    /// How much to hash
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub hash_mib: u32,
    /// Boot no machine
    #[arg(long)]
    pub no_boot: bool,
    /// Measure nothing else, and show no e2e run; may be repeated
    #[arg(long, value_name = "PART", conflicts_with = "no_boot")]
    pub only: Vec<BenchPart>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchPart {
    /// Of images
    Hashing,
    /// Frames between two endpoints
    Switch,
    /// Frames between two guests
    Traffic,
    /// From power on to a first command
    Boot,
    /// Of a cloud from its layer
    Restore,
}

/// A number of bytes with its unit.
fn size(text: &str) -> Result<u64, String> {
    let wanted = || format!("`{text}` is no size such as 20GiB or 512MiB");
    text.parse::<Bytes>().map(|b| b.0).map_err(|()| wanted())
}

/// Exit codes and environment, made from the code that uses them so that they cannot drift.
fn after_help() -> String {
    let mut text = String::from("Exit codes:\n    0  success\n");
    for kind in Kind::ALL {
        text.push_str(&format!("  {:>3}  {}\n", kind.exit_code(), kind.meaning()));
    }
    text.push_str("\nEnvironment:\n");
    for (name, meaning) in super::environment::VARIABLES {
        text.push_str(&format!("  {name:<26} {meaning}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("stackproof").chain(line.split_whitespace()))
    }

    #[test]
    fn parts_of_a_bench_are_named_one_by_one_and_those_that_boot_not_without_booting() {
        let Verb::Bench(bench) = parse("bench --only switch --only traffic").unwrap().verb else {
            panic!("another verb");
        };
        assert_eq!(bench.only, [BenchPart::Switch, BenchPart::Traffic]);
        assert!(parse("bench --only boot --no-boot").is_err());
        assert!(parse("bench --only all").is_err());
    }

    #[test]
    fn the_grammar_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_lists_every_exit_code_with_its_meaning_and_every_variable() {
        let help = Cli::command().render_long_help().to_string();
        for kind in Kind::ALL {
            let line = format!("{:>3}  {}", kind.exit_code(), kind.meaning());
            assert!(help.contains(&line), "no `{line}` in:\n{help}");
        }
        for (name, _) in super::super::environment::VARIABLES {
            assert!(help.contains(name), "no {name} in:\n{help}");
        }
    }

    #[test]
    fn e2e_takes_every_documented_option_and_global_ones_after_the_verb() {
        let cli = parse(
            "e2e --lab my.toml --instance-image disk.qcow2 --instance-user joe --keep \
             --json out.json --accel tcg --nested off --log-dir logs --cold --layers-max 20GiB --no-wait --store /s --debian-mirror http://example.org/debian -v",
        )
        .unwrap();
        assert_eq!(cli.global.store, Some("/s".into()));
        assert_eq!(cli.global.debian_mirror.as_deref(), Some("http://example.org/debian"));
        assert!(cli.global.verbose);
        let Verb::E2e(e2e) = cli.verb else { panic!("not e2e") };
        assert_eq!(e2e.lab, "my.toml");
        assert_eq!(e2e.instance_image, "disk.qcow2");
        assert_eq!(e2e.instance_user.as_deref(), Some("joe"));
        assert!(e2e.keep);
        assert_eq!(e2e.json, Some("out.json".into()));
        assert_eq!(e2e.log_dir, Some("logs".into()));
        assert_eq!(e2e.virtualization.accel(), Some(Accel::Tcg));
        assert_eq!(e2e.virtualization.nested(), Some(false));
        assert_eq!(e2e.virtualization.words(), ["--accel", "tcg", "--nested", "off"]);
        assert_eq!((e2e.cold, e2e.no_wait, e2e.layers_max), (true, true, Some(20 << 30)));
    }

    #[test]
    fn e2e_without_options_is_the_two_node_lab_with_probe_guest() {
        let Verb::E2e(e2e) = parse("e2e").unwrap().verb else { panic!("not e2e") };
        assert_eq!((e2e.lab.as_str(), e2e.instance_image.as_str()), ("two-node", "probe-guest"));
    }

    #[test]
    fn a_wrong_command_line_exits_as_wrong_input() {
        for line in [
            "e2e --nope",
            "e2e --layers-max 5",
            "cache gc --all --max 1GiB",
            "e2e --accel xen",
            "lab up --restore x --nested on",
            "images fetch",
            "images",
            "host chekc",
            "frobnicate",
        ] {
            let e = parse(line).unwrap_err();
            assert_eq!(e.exit_code(), i32::from(Kind::Input.exit_code()), "{line}: {e}");
        }
    }
}
