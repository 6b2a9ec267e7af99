//! What can be made wrong with one direction of a port, and its human text.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The way of a frame through a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From the machine into the network.
    From,
    /// From the network to the machine.
    To,
}

impl Direction {
    pub const BOTH: [Direction; 2] = [Direction::From, Direction::To];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::From => "from",
            Direction::To => "to",
        })
    }
}

/// How often something happens to a frame: a share in whole billionths, so that equal texts are
/// equal values and no rounding decides a fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probability(u32);

impl Probability {
    pub const NEVER: Probability = Probability(0);
    pub const ALWAYS: Probability = Probability(BILLION as u32);

    /// `billionths` of 1; above 1,000,000,000 it is always.
    pub fn from_billionths(billionths: u32) -> Probability {
        Probability(billionths.min(BILLION as u32))
    }
    pub fn billionths(self) -> u32 {
        self.0
    }
    /// Between 0 and 1.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / BILLION as f64
    }
    /// True for this share of all values of `draw`.
    pub(super) fn hits(self, draw: u64) -> bool {
        ((u128::from(draw) * u128::from(BILLION)) >> 64) < u128::from(self.0)
    }
}

/// `5%`, `0.05`.
impl FromStr for Probability {
    type Err = Error;
    fn from_str(text: &str) -> Result<Probability> {
        let billionths = match text.strip_suffix('%') {
            Some(percent) => decimal(percent, BILLION / 100),
            None => decimal(text, BILLION),
        };
        match billionths {
            Some(b) if b <= BILLION => Ok(Probability(b as u32)),
            Some(_) => Err(Error::input(format!("`{text}` is more than always"))
                .hint("a probability is between 0% and 100%")),
            None => Err(Error::input(format!("`{text}` is no probability"))
                .hint("write it as `5%` or `0.05`, with at most nine decimals")),
        }
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", fraction(u64::from(self.0), BILLION / 100))
    }
}

/// What happens to the frames of one port in one direction. The default is no fault at all.
///
/// As text, also in JSON: `loss=5% latency=20ms jitter=5ms rate=10mbit duplicate=1% reorder=2%`, any
/// of them, or `none`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Impairment {
    /// Frames that vanish.
    pub loss: Probability,
    /// Every frame comes at least so much later, to the next millisecond. At most a minute.
    pub latency: Duration,
    /// And between nothing and so much more, evenly. Order is kept all the same. At most a minute.
    pub jitter: Duration,
    /// Bits a second, of whole frames. What waits for its turn is bounded; the rest is dropped.
    pub bandwidth: Option<u64>,
    /// Frames that come twice.
    pub duplicate: Probability,
    /// Frames that one to three later ones overtake.
    pub reorder: Probability,
}

/// The longest latency, and the longest jitter.
const LONGEST: Duration = Duration::from_secs(60);

/// The slowest bandwidth, in bits a second: a full frame takes twelve seconds.
const SLOWEST: u64 = 1000;

const SETTINGS: &str = "the settings are loss=5% latency=20ms jitter=5ms rate=10mbit duplicate=1% \
                        reorder=2%, or `none`";

impl Impairment {
    pub fn is_none(&self) -> bool {
        *self == Impairment::default()
    }

    /// True when a frame may have to wait.
    pub(super) fn delays(&self) -> bool {
        self.latency + self.jitter > Duration::ZERO
            || self.bandwidth.is_some()
            || self.reorder > Probability::NEVER
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "loss" => self.loss = value.parse()?,
            "latency" => self.latency = parse_delay(value)?,
            "jitter" => self.jitter = parse_delay(value)?,
            "rate" => self.bandwidth = Some(parse_rate(value)?),
            "duplicate" => self.duplicate = value.parse()?,
            "reorder" => self.reorder = value.parse()?,
            _ => return Err(Error::input(format!("there is no fault `{key}`")).hint(SETTINGS)),
        }
        Ok(())
    }
}

/// Settings are separated by spaces or commas.
impl FromStr for Impairment {
    type Err = Error;
    fn from_str(text: &str) -> Result<Impairment> {
        let mut fault = Impairment::default();
        if text.trim() == "none" {
            return Ok(fault);
        }
        let mut seen = Vec::new();
        let settings = text.split(|c: char| c == ',' || c.is_whitespace());
        for setting in settings.filter(|s| !s.is_empty()) {
            let Some((key, value)) = setting.split_once('=') else {
                return Err(Error::input(format!("`{setting}` has no value")).hint(SETTINGS));
            };
            if seen.contains(&key) {
                return Err(Error::input(format!("`{key}` is given twice"))
                    .hint("each setting once: which one counts?"));
            }
            seen.push(key);
            fault.set(key, value).map_err(|e| e.while_doing(format!("the fault `{setting}`")))?;
        }
        if seen.is_empty() {
            return Err(Error::input("an empty text is no fault").hint(SETTINGS));
        }
        Ok(fault)
    }
}

impl fmt::Display for Impairment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("none");
        }
        let share = |key, p: Probability| (p > Probability::NEVER).then(|| format!("{key}={p}"));
        let time = |key, d: Duration| (!d.is_zero()).then(|| format!("{key}={}", span(d)));
        let settings = [
            share("loss", self.loss),
            time("latency", self.latency),
            time("jitter", self.jitter),
            self.bandwidth.map(|r| format!("rate={}", speed(r))),
            share("duplicate", self.duplicate),
            share("reorder", self.reorder),
        ];
        f.write_str(&settings.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }
}

impl From<Impairment> for String {
    fn from(impairment: Impairment) -> String {
        impairment.to_string()
    }
}

impl TryFrom<String> for Impairment {
    type Error = Error;
    fn try_from(text: String) -> Result<Impairment> {
        text.parse()
    }
}

const BILLION: u64 = 1_000_000_000;

/// The units, longest name first where one ends another.
const TIMES: [(&str, u64); 4] = [("ns", 1), ("us", 1000), ("ms", 1_000_000), ("s", BILLION)];
const SPEEDS: [(&str, u64); 4] =
    [("kbit", 1000), ("mbit", 1_000_000), ("gbit", BILLION), ("bit", 1)];

/// A latency or a jitter: `20ms`, `1.5s`, `300us`.
pub fn parse_delay(text: &str) -> Result<Duration> {
    let wrong = || {
        Error::input(format!("`{text}` is no time")).hint("write it as `20ms`, `1.5s` or `300us`")
    };
    let time = Duration::from_nanos(with_unit(text, &TIMES).ok_or_else(wrong)?);
    if time > LONGEST {
        return Err(Error::input(format!("{text} is too long"))
            .hint(format!("at most {} s; to lose frames use `loss`", LONGEST.as_secs())));
    }
    Ok(time)
}

/// Bits a second: `10mbit`, `64kbit`. At no rate nothing would ever arrive, which looks
/// like a cut.
pub fn parse_rate(text: &str) -> Result<u64> {
    let wrong = || {
        Error::input(format!("`{text}` is no rate"))
            .hint("write it as `10mbit`, `64kbit` or `1gbit` (a second)")
    };
    let rate = with_unit(text, &SPEEDS).ok_or_else(wrong)?;
    if rate < SLOWEST {
        return Err(Error::input(format!("{rate} bits a second is too slow"))
            .hint("at least 1kbit (1000); to stop all, cut"));
    }
    Ok(rate)
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = units.iter().find_map(|(name, unit)| {
        let number = text.strip_suffix(name)?;
        // `20ms` ends with `s` too: what is left must be a number.
        number.ends_with(|c: char| c.is_ascii_digit()).then_some((number, *unit))
    })?;
    decimal(number, unit)
}

/// `1.5` in a unit of so many parts, exactly: None where the parts are too coarse for it.
fn decimal(text: &str, unit: u64) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || (text.contains('.') && !digits(part)) {
        return None;
    }
    let scale = 10u64.checked_pow(part.len().try_into().ok()?)?;
    let parts = if part.is_empty() { 0 } else { part.parse::<u64>().ok()? };
    let parts = u128::from(parts) * u128::from(unit);
    if parts % u128::from(scale) != 0 {
        return None;
    }
    let parts = u64::try_from(parts / u128::from(scale)).ok()?;
    whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(parts)
}

/// The reverse of [`decimal`]; `unit` is a power of ten.
fn fraction(value: u64, unit: u64) -> String {
    let (whole, part) = (value / unit, value % unit);
    if part == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    format!("{whole}.{part:0width$}").trim_end_matches('0').to_owned()
}

fn span(time: Duration) -> String {
    let nanos = time.as_nanos() as u64;
    let (name, unit) = TIMES.iter().rev().find(|(_, unit)| nanos >= *unit).unwrap_or(&TIMES[0]);
    format!("{}{name}", fraction(nanos, *unit))
}

fn speed(rate: u64) -> String {
    let mut units = SPEEDS;
    units.sort_by_key(|(_, unit)| *unit);
    let (name, unit) = units.iter().rev().find(|(_, unit)| rate >= *unit).unwrap_or(&units[0]);
    format!("{}{name}", fraction(rate, *unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Impairment {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn every_setting_is_read_and_told_in_the_same_words() {
        let text = "loss=5% latency=20ms jitter=5ms rate=10mbit duplicate=1% reorder=2%";
        let fault = parse(text);
        assert_eq!(fault.loss, Probability::from_billionths(50_000_000));
        assert_eq!(fault.latency, Duration::from_millis(20));
        assert_eq!(fault.jitter, Duration::from_millis(5));
        assert_eq!(fault.bandwidth, Some(10_000_000));
        assert_eq!(fault.duplicate, Probability::from_billionths(10_000_000));
        assert_eq!(fault.reorder, Probability::from_billionths(20_000_000));
        assert_eq!(fault.to_string(), text);
    }

    #[test]
    fn what_is_told_is_read_back_as_the_same_value() {
        for text in [
            "none",
            "loss=100%",
            "loss=0.0000001%",
            "loss=7%",
            "latency=1.5s",
            "latency=1ns jitter=1us",
            "jitter=300us",
            "rate=1kbit",
            "rate=1.000001mbit",
            "rate=2.5gbit",
            "duplicate=33.3333333%",
        ] {
            let fault = parse(text);
            assert_eq!(parse(&fault.to_string()), fault, "{text}");
            assert_eq!(fault.to_string(), text);
        }
        assert_eq!(parse("loss=0.05,latency=0.02s"), parse("latency=20ms   loss=5%"));
        assert_eq!(parse("loss=0%"), Impairment::default());
    }

    #[test]
    fn json_has_the_text() {
        let impairment = parse("loss=2.5% rate=10mbit");
        let json = serde_json::to_string(&impairment).unwrap();
        assert_eq!(json, "\"loss=2.5% rate=10mbit\"");
        assert_eq!(serde_json::from_str::<Impairment>(&json).unwrap(), impairment);
        assert!(serde_json::from_str::<Impairment>("\"loss=101%\"").is_err());
    }

    #[test]
    fn an_error_says_what_is_wrong_and_what_would_be_right() {
        for (text, words) in [
            ("", "empty"),
            ("loss", "`loss` has no value"),
            ("lost=5%", "there is no fault `lost`"),
            ("loss=5% loss=6%", "`loss` is given twice"),
            ("loss=101%", "more than always"),
            ("loss=1.5", "more than always"),
            ("loss=-1%", "`-1%` is no probability"),
            ("loss=.5", "no probability"),
            ("loss=0.0000000001", "no probability"),
            ("latency=20", "`20` is no time"),
            ("latency=ms", "`ms` is no time"),
            ("latency=0.5ns", "no time"),
            ("jitter=61s", "61s is too long"),
            ("latency=99999999999999999999s", "no time"),
            ("rate=10", "`10` is no rate"),
            ("rate=0kbit", "too slow"),
            ("rate=10mb", "no rate"),
        ] {
            let error = text.parse::<Impairment>().unwrap_err();
            assert!(error.message().contains(words), "{text}: {error}");
            assert!(error.hint_text().is_some(), "{text}");
        }
    }

    #[test]
    fn never_and_always_are_exact() {
        for draw in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(!Probability::NEVER.hits(draw));
            assert!(Probability::ALWAYS.hits(draw));
        }
        let half = Probability::from_billionths(500_000_000);
        assert!(half.hits(u64::MAX / 2) && !half.hits(u64::MAX / 2 + 1));
    }
}
