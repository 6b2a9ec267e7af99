//! The options of `stackproof lab fault disturb`. A bare number is percent, milliseconds or bits a
//! second.

use crate::error::Error;
use crate::lab::switch::{Impairment, Probability, parse_delay, parse_rate};
use clap::{Arg, ArgGroup, ArgMatches, Args, Command, FromArgMatches};
use std::time::Duration;

fn percent(text: &str) -> Result<Probability, Error> {
    format!("{}%", text.strip_suffix('%').unwrap_or(text)).parse()
}

fn delay(text: &str) -> Result<Duration, Error> {
    parse_delay(&with_unit(text, "ms"))
}

fn bandwidth(text: &str) -> Result<u64, Error> {
    parse_rate(&with_unit(text, "bit"))
}

fn with_unit(text: &str, unit: &str) -> String {
    let unit = if text.ends_with(|c: char| c.is_ascii_digit()) { unit } else { "" };
    format!("{text}{unit}")
}

impl Args for Impairment {
    fn augment_args(command: Command) -> Command {
        let arg = |name, value, help| Arg::new(name).long(name).value_name(value).help(help);
        let share = |name, help| arg(name, "PERCENT", help).value_parser(percent);
        let time = |name, help| arg(name, "MS", help).value_parser(delay);
        let args = [
            share("loss", "Frames that vanish: 2.5 or 2.5%"),
            share("duplicate", "Frames that come twice"),
            share("reorder", "Frames that one to three later ones overtake"),
            time("latency", "Every frame comes so much later: 20, 20ms or 1.5s"),
            time("jitter", "And up to so much more"),
            arg("bandwidth", "BITS", "Bits a second: 10000000 or 10mbit").value_parser(bandwidth),
        ];
        let names = args.each_ref().map(|arg| arg.get_id().clone());
        let group = ArgGroup::new("impairment").args(names).multiple(true).required(true);
        command.args(args).group(group)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Impairment::augment_args(command)
    }
}

impl FromArgMatches for Impairment {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Impairment, clap::Error> {
        let share = |name| matches.get_one::<Probability>(name).copied().unwrap_or_default();
        let time = |name| matches.get_one::<Duration>(name).copied().unwrap_or_default();
        Ok(Impairment {
            loss: share("loss"),
            duplicate: share("duplicate"),
            reorder: share("reorder"),
            latency: time("latency"),
            jitter: time("jitter"),
            bandwidth: matches.get_one("bandwidth").copied(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Impairment::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::args::{Cli, Verb};
    use crate::cli::lab::args::LabVerb;
    use crate::supervisor::fault::FaultRequest;
    use clap::Parser;

    fn parse(options: &str) -> Result<FaultRequest, clap::Error> {
        let line = format!("stackproof lab fault disturb a/management {options}");
        match Cli::try_parse_from(line.split_whitespace())?.verb {
            Verb::Lab(lab) => match lab.verb {
                LabVerb::Fault(fault) => Ok(fault),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_are_the_impairment_that_they_say() {
        for (options, expected) in [
            ("--loss 2.5", "loss=2.5%"),
            ("--loss 2.5%", "loss=2.5%"),
            ("--loss 0.5 --duplicate 1 --reorder 2", "loss=0.5% duplicate=1% reorder=2%"),
            ("--latency 20 --jitter 0.5", "latency=20ms jitter=500us"),
            ("--latency 1.5s", "latency=1.5s"),
            ("--bandwidth 10000000", "rate=10mbit"),
            ("--bandwidth 64kbit", "rate=64kbit"),
        ] {
            let FaultRequest::Disturb { at, impairment, seed } =
                parse(&format!("{options} --seed 7")).unwrap()
            else {
                panic!("a disturbance")
            };
            assert_eq!((at.to_string().as_str(), seed), ("a/management", 7));
            assert_eq!(impairment, expected.parse().unwrap(), "{options}");
        }
    }

    #[test]
    fn impossible_impairments_are_refused() {
        let options = "|--seed 7|--loss 101|--loss -1|--latency 61000|--bandwidth 0|--loss x";
        for options in options.split('|') {
            assert_eq!(parse(options).unwrap_err().exit_code(), 2, "{options}");
        }
    }
}
