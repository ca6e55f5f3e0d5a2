//! Cedar's extension types `decimal`, `ipaddr`, `datetime` and `duration`: constructors, methods and their text.
//!
//! Everything here is a pure function of its arguments, so the compiler folds calls on constants with [`fold`] and the
//! evaluator uses [`call`] for the rest; both go through one implementation. The parsers walk bytes once: no regular
//! expression, no allocation, at most one pass over the text whatever it holds.
//!
//! It refuses to be lenient. A string that the reference crate does not accept is no value here either (`"1"` is no
//! decimal, `"01.2.3.4"` no address, `"+01:00"` no offset), and whatever does not fit into 64 bits is an error, never a
//! wrapped or clamped number. Partial evaluation (`unknown`) is not known here, and `isInRange` takes exactly one range,
//! as in the reference with default features.
//!
//! The semantics are those of the Cedar language 4.5 and are held to the reference crate by
//! `tests/extension_oracle.rs`. The conversion between days and calendar dates is Howard Hinnant's
//! (<https://howardhinnant.github.io/date_algorithms.html>), which counts years from March so that the leap day comes
//! last.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use bumpalo::Bump;

use crate::value::{Ip, Val, Value};

/// Why an extension call has no value. Says nothing of the arguments: they may come from a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ExtError {
    /// Too few or too many arguments, the receiver of a method included.
    #[error("wrong number of arguments for an extension function")]
    WrongArity,
    /// An argument of another type than the function takes.
    #[error("wrong type of argument for an extension function")]
    WrongType,
    /// The text given to a constructor is not in the form it accepts, or stands for a value that does not fit.
    #[error("text is not a valid literal of the extension type")]
    BadLiteral,
    /// The result does not fit into 64 bits.
    #[error("result of an extension function does not fit into 64 bits")]
    Overflow,
}

/// An extension function; methods count their receiver as the first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtFn {
    /// `decimal(String) -> decimal`
    Decimal,
    /// `ip(String) -> ipaddr`
    Ip,
    /// `datetime(String) -> datetime`
    Datetime,
    /// `duration(String) -> duration`
    Duration,
    /// `decimal.lessThan(decimal) -> Bool`
    LessThan,
    /// `decimal.lessThanOrEqual(decimal) -> Bool`
    LessThanOrEqual,
    /// `decimal.greaterThan(decimal) -> Bool`
    GreaterThan,
    /// `decimal.greaterThanOrEqual(decimal) -> Bool`
    GreaterThanOrEqual,
    /// `ipaddr.isIpv4() -> Bool`
    IsIpv4,
    /// `ipaddr.isIpv6() -> Bool`
    IsIpv6,
    /// `ipaddr.isLoopback() -> Bool`
    IsLoopback,
    /// `ipaddr.isMulticast() -> Bool`
    IsMulticast,
    /// `ipaddr.isInRange(ipaddr) -> Bool`
    IsInRange,
    /// `datetime.offset(duration) -> datetime`
    Offset,
    /// `datetime.durationSince(datetime) -> duration`
    DurationSince,
    /// `datetime.toDate() -> datetime`
    ToDate,
    /// `datetime.toTime() -> duration`
    ToTime,
    /// `duration.toMilliseconds() -> Long`
    ToMilliseconds,
    /// `duration.toSeconds() -> Long`
    ToSeconds,
    /// `duration.toMinutes() -> Long`
    ToMinutes,
    /// `duration.toHours() -> Long`
    ToHours,
    /// `duration.toDays() -> Long`
    ToDays,
}

impl ExtFn {
    /// Every extension function.
    pub const ALL: [Self; 22] = [
        Self::Decimal,
        Self::Ip,
        Self::Datetime,
        Self::Duration,
        Self::LessThan,
        Self::LessThanOrEqual,
        Self::GreaterThan,
        Self::GreaterThanOrEqual,
        Self::IsIpv4,
        Self::IsIpv6,
        Self::IsLoopback,
        Self::IsMulticast,
        Self::IsInRange,
        Self::Offset,
        Self::DurationSince,
        Self::ToDate,
        Self::ToTime,
        Self::ToMilliseconds,
        Self::ToSeconds,
        Self::ToMinutes,
        Self::ToHours,
        Self::ToDays,
    ];

    /// Finds a function by its Cedar name. A linear scan: names are looked up while loading policies only.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }

    /// The name in Cedar text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decimal => "decimal",
            Self::Ip => "ip",
            Self::Datetime => "datetime",
            Self::Duration => "duration",
            Self::LessThan => "lessThan",
            Self::LessThanOrEqual => "lessThanOrEqual",
            Self::GreaterThan => "greaterThan",
            Self::GreaterThanOrEqual => "greaterThanOrEqual",
            Self::IsIpv4 => "isIpv4",
            Self::IsIpv6 => "isIpv6",
            Self::IsLoopback => "isLoopback",
            Self::IsMulticast => "isMulticast",
            Self::IsInRange => "isInRange",
            Self::Offset => "offset",
            Self::DurationSince => "durationSince",
            Self::ToDate => "toDate",
            Self::ToTime => "toTime",
            Self::ToMilliseconds => "toMilliseconds",
            Self::ToSeconds => "toSeconds",
            Self::ToMinutes => "toMinutes",
            Self::ToHours => "toHours",
            Self::ToDays => "toDays",
        }
    }

    /// Number of arguments, the receiver of a method included.
    pub const fn arity(self) -> usize {
        match self {
            Self::LessThan
            | Self::LessThanOrEqual
            | Self::GreaterThan
            | Self::GreaterThanOrEqual
            | Self::IsInRange
            | Self::Offset
            | Self::DurationSince => 2,
            _ => 1,
        }
    }

    /// Whether Cedar text writes it `x.f(y)`; only the four constructors are written `f(x)`.
    pub const fn is_method(self) -> bool {
        !matches!(self, Self::Decimal | Self::Ip | Self::Datetime | Self::Duration)
    }
}

/// Evaluates a call. The bump arena holds the result of `ip`, the one value that does not fit into a [`Value`].
#[inline]
pub fn call<'a>(f: ExtFn, args: &[Value<'a>], bump: &'a Bump) -> Result<Value<'a>, ExtError> {
    Ok(match apply(f, args)? {
        Outcome::Bool(b) => Value::Bool(b),
        Outcome::Long(n) => Value::Long(n),
        Outcome::Decimal(n) => Value::Decimal(n),
        Outcome::Datetime(n) => Value::Datetime(n),
        Outcome::Duration(n) => Value::Duration(n),
        Outcome::Ip(ip) => Value::Ip(bump.alloc(ip)),
    })
}

/// Evaluates a call on constants while compiling.
pub fn fold(f: ExtFn, args: &[Val]) -> Result<Val, ExtError> {
    let outcome = match args {
        [a] => apply(f, &[a.as_value()]),
        [a, b] => apply(f, &[a.as_value(), b.as_value()]),
        // No function takes none or more than two.
        _ => Err(ExtError::WrongArity),
    }?;
    Ok(match outcome {
        Outcome::Bool(b) => Val::Bool(b),
        Outcome::Long(n) => Val::Long(n),
        Outcome::Decimal(n) => Val::Decimal(n),
        Outcome::Datetime(n) => Val::Datetime(n),
        Outcome::Duration(n) => Val::Duration(n),
        Outcome::Ip(ip) => Val::Ip(Box::new(ip)),
    })
}

/// A result before it is known where it will live.
enum Outcome {
    Bool(bool),
    Long(i64),
    Decimal(i64),
    Datetime(i64),
    Duration(i64),
    Ip(Ip),
}

/// Dispatches on the number of arguments first, as the reference does: a wrong count wins over a wrong type.
#[inline]
fn apply(f: ExtFn, args: &[Value<'_>]) -> Result<Outcome, ExtError> {
    match (f.arity(), args) {
        (1, [a]) => apply_unary(f, a),
        (2, [a, b]) => apply_binary(f, a, b),
        _ => Err(ExtError::WrongArity),
    }
}

fn apply_unary(f: ExtFn, a: &Value<'_>) -> Result<Outcome, ExtError> {
    Ok(match (f, a) {
        (ExtFn::Decimal, Value::Str(s)) => Outcome::Decimal(parse_decimal(s).ok_or(ExtError::BadLiteral)?),
        (ExtFn::Ip, Value::Str(s)) => Outcome::Ip(parse_ip(s).ok_or(ExtError::BadLiteral)?),
        (ExtFn::Datetime, Value::Str(s)) => Outcome::Datetime(parse_datetime(s).ok_or(ExtError::BadLiteral)?),
        (ExtFn::Duration, Value::Str(s)) => Outcome::Duration(parse_duration(s).ok_or(ExtError::BadLiteral)?),
        (ExtFn::IsIpv4, Value::Ip(ip)) => Outcome::Bool(ip.addr.is_ipv4()),
        (ExtFn::IsIpv6, Value::Ip(ip)) => Outcome::Bool(ip.addr.is_ipv6()),
        (ExtFn::IsLoopback, Value::Ip(ip)) => Outcome::Bool(is_loopback(ip)),
        (ExtFn::IsMulticast, Value::Ip(ip)) => Outcome::Bool(is_multicast(ip)),
        (ExtFn::ToDate, Value::Datetime(n)) => Outcome::Datetime(to_date(*n).ok_or(ExtError::Overflow)?),
        (ExtFn::ToTime, Value::Datetime(n)) => Outcome::Duration(n.rem_euclid(DAY_MS)),
        // Division of signed integers truncates towards zero, which is what Cedar asks for.
        (ExtFn::ToMilliseconds, Value::Duration(n)) => Outcome::Long(*n),
        (ExtFn::ToSeconds, Value::Duration(n)) => Outcome::Long(n / SECOND_MS),
        (ExtFn::ToMinutes, Value::Duration(n)) => Outcome::Long(n / MINUTE_MS),
        (ExtFn::ToHours, Value::Duration(n)) => Outcome::Long(n / HOUR_MS),
        (ExtFn::ToDays, Value::Duration(n)) => Outcome::Long(n / DAY_MS),
        _ => return Err(ExtError::WrongType),
    })
}

fn apply_binary(f: ExtFn, a: &Value<'_>, b: &Value<'_>) -> Result<Outcome, ExtError> {
    Ok(match (f, a, b) {
        (ExtFn::LessThan, Value::Decimal(a), Value::Decimal(b)) => Outcome::Bool(a < b),
        (ExtFn::LessThanOrEqual, Value::Decimal(a), Value::Decimal(b)) => Outcome::Bool(a <= b),
        (ExtFn::GreaterThan, Value::Decimal(a), Value::Decimal(b)) => Outcome::Bool(a > b),
        (ExtFn::GreaterThanOrEqual, Value::Decimal(a), Value::Decimal(b)) => Outcome::Bool(a >= b),
        (ExtFn::IsInRange, Value::Ip(a), Value::Ip(b)) => Outcome::Bool(is_in_range(a, b)),
        (ExtFn::Offset, Value::Datetime(a), Value::Duration(b)) => {
            Outcome::Datetime(a.checked_add(*b).ok_or(ExtError::Overflow)?)
        }
        (ExtFn::DurationSince, Value::Datetime(a), Value::Datetime(b)) => {
            Outcome::Duration(a.checked_sub(*b).ok_or(ExtError::Overflow)?)
        }
        _ => return Err(ExtError::WrongType),
    })
}

// Numbers ------------------------------------------------------------------------------------------------------------

/// Reads a run of at least one ASCII digit and returns its value with what follows. Leading zeros are fine, however
/// many. A number beyond 64 bits and no number at all are the same to the callers: no literal.
fn leading_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (run, rest) = bytes.split_at_checked(digits)?;
    Some((number(run)?, rest))
}

/// The value of a non-empty run of ASCII digits that fits into 64 bits.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, &byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Puts sign and magnitude together. Doing this last gives `i64::MIN`, whose magnitude no `i64` holds, no special case.
const fn signed(negative: bool, magnitude: u64) -> Option<i64> {
    if negative { 0_i64.checked_sub_unsigned(magnitude) } else { 0_i64.checked_add_unsigned(magnitude) }
}

/// Splits off a leading minus sign.
const fn sign(bytes: &[u8]) -> (bool, &[u8]) {
    match bytes {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, bytes),
    }
}

// decimal ------------------------------------------------------------------------------------------------------------

/// Units of a decimal per whole: four digits follow the point.
const DECIMAL_SCALE: u64 = 10_000;

/// Parses `-?digits.digits` with one to four digits after the point, in units of 10^-4.
pub fn parse_decimal(text: &str) -> Option<i64> {
    let (negative, bytes) = sign(text.as_bytes());
    let (whole, rest) = leading_number(bytes)?;
    let [b'.', fraction @ ..] = rest else { return None };
    let unit = match fraction.len() {
        1 => 1000,
        2 => 100,
        3 => 10,
        4 => 1,
        _ => return None,
    };
    let fraction = number(fraction)?.checked_mul(unit)?;
    signed(negative, whole.checked_mul(DECIMAL_SCALE)?.checked_add(fraction)?)
}

/// Cedar text of a decimal, `decimal("12.5")`: at least one digit after the point, no zeros after that.
pub fn decimal_text(value: i64) -> String {
    let magnitude = value.unsigned_abs();
    let mut digits = format!("{:04}", magnitude % DECIMAL_SCALE);
    while digits.len() > 1 && digits.ends_with('0') {
        digits.pop();
    }
    let sign = if value < 0 { "-" } else { "" };
    format!("decimal(\"{sign}{}.{digits}\")", magnitude / DECIMAL_SCALE)
}

// ipaddr -------------------------------------------------------------------------------------------------------------

/// Prefix of a single IPv4 address.
const PREFIX_V4_MAX: u8 = 32;
/// Prefix of a single IPv6 address.
const PREFIX_V6_MAX: u8 = 128;
/// Bytes of the longest address with prefix, eight groups of four digits and `/128`. The reference refuses more before
/// looking at them.
const IP_BYTES_MAX: usize = 43;

/// Parses an address with an optional `/prefix`. Host bits may be set. IPv4 inside IPv6 (`::ffff:1.2.3.4`), zone ids
/// and leading zeros in IPv4 parts or in the prefix are refused.
pub fn parse_ip(text: &str) -> Option<Ip> {
    if text.len() > IP_BYTES_MAX {
        return None;
    }
    let (addr, prefix) = match text.split_once('/') {
        Some((addr, prefix)) => (addr, Some(prefix)),
        None => (text, None),
    };
    // The standard library reads addresses without allocating, and it is what the reference delegates to: the two
    // cannot drift apart.
    let addr: IpAddr = addr.parse().ok()?;
    if addr.is_ipv6() && text.contains('.') {
        return None;
    }
    let prefix_max = if addr.is_ipv4() { PREFIX_V4_MAX } else { PREFIX_V6_MAX };
    let prefix = match prefix {
        Some(prefix) => parse_prefix(prefix.as_bytes(), prefix_max)?,
        None => prefix_max,
    };
    Some(Ip { addr, prefix })
}

fn parse_prefix(digits: &[u8], max: u8) -> Option<u8> {
    if let [b'0', _, ..] = digits {
        return None;
    }
    u8::try_from(number(digits)?).ok().filter(|prefix| *prefix <= max)
}

/// Whether the whole range lies in `127.0.0.0/8` or is `::1`.
const fn is_loopback(ip: &Ip) -> bool {
    ip.addr.is_loopback() && ip.prefix >= if ip.addr.is_ipv4() { 8 } else { PREFIX_V6_MAX }
}

/// Whether the whole range lies in `224.0.0.0/4` or `ff00::/8`.
const fn is_multicast(ip: &Ip) -> bool {
    ip.addr.is_multicast() && ip.prefix >= if ip.addr.is_ipv4() { 4 } else { 8 }
}

/// Whether every address of `inner` is one of `outer`; never across families. Ranges are aligned blocks, so this is:
/// at least as long a prefix, and the same bits under the outer one.
fn is_in_range(inner: &Ip, outer: &Ip) -> bool {
    if inner.prefix < outer.prefix {
        return false;
    }
    match (inner.addr, outer.addr) {
        (IpAddr::V4(inner), IpAddr::V4(address)) => {
            // A shift by the whole width, prefix 0, leaves nothing to compare.
            let host_bits = u32::from(PREFIX_V4_MAX.saturating_sub(outer.prefix));
            (inner.to_bits() ^ address.to_bits()).checked_shr(host_bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(inner), IpAddr::V6(address)) => {
            let host_bits = u32::from(PREFIX_V6_MAX.saturating_sub(outer.prefix));
            (inner.to_bits() ^ address.to_bits()).checked_shr(host_bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// Cedar text of an address, `ip("10.0.0.0/8")`; the prefix of a single address is left out.
pub fn ip_text(ip: &Ip) -> String {
    let mut text = String::from("ip(\"");
    let prefix_max = match ip.addr {
        IpAddr::V4(addr) => {
            // Writing to a String cannot fail; the same below.
            let _ = write!(text, "{addr}");
            PREFIX_V4_MAX
        }
        IpAddr::V6(addr) => {
            write_v6(&mut text, addr);
            PREFIX_V6_MAX
        }
    };
    if ip.prefix != prefix_max {
        let _ = write!(text, "/{}", ip.prefix);
    }
    text.push_str("\")");
    text
}

/// The standard library shows mapped addresses as `::ffff:1.2.3.4`, which Cedar does not read back.
fn write_v6(text: &mut String, addr: Ipv6Addr) {
    let _ = match addr.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] => write!(text, "::ffff:{high:x}:{low:x}"),
        _ => write!(text, "{addr}"),
    };
}

// datetime -----------------------------------------------------------------------------------------------------------

const SECOND_MS: i64 = 1000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

/// Milliseconds of 0000-01-01T00:00:00Z and of the last millisecond of the year 9999: what a literal without an offset
/// can name.
const LITERAL_MS: std::ops::RangeInclusive<i64> = -62_167_219_200_000..=253_402_300_799_999;

/// Parses `YYYY-MM-DD`, or that and `THH:MM:SS[.SSS]` with `Z`, `+hhmm` or `-hhmm`, into milliseconds since the epoch.
/// Years 0000 to 9999 of the proleptic Gregorian calendar; no leap second, no 24:00.
pub fn parse_datetime(text: &str) -> Option<i64> {
    let (date, rest) = text.as_bytes().split_at_checked(10)?;
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = *date else { return None };
    let year = fixed(&[y1, y2, y3, y4])?;
    let day_ms = days_from_civil(year, fixed(&[m1, m2])?, fixed(&[d1, d2])?)?.checked_mul(DAY_MS)?;
    if rest.is_empty() {
        return Some(day_ms);
    }
    let (time, rest) = rest.split_at_checked(9)?;
    let [b'T', h1, h2, b':', m1, m2, b':', s1, s2] = *time else { return None };
    let (hour, minute) = (fixed(&[h1, h2])?, fixed(&[m1, m2])?);
    let second = fixed(&[s1, s2]).filter(|second| *second < 60)?;
    let (millisecond, zone) = match *rest {
        [b'.', a, b, c, ref zone @ ..] => (fixed(&[a, b, c])?, zone),
        _ => (0, rest),
    };
    let offset_ms = match *zone {
        [b'Z'] => 0,
        [b'+', h1, h2, m1, m2] => clock_ms(fixed(&[h1, h2])?, fixed(&[m1, m2])?)?,
        [b'-', h1, h2, m1, m2] => clock_ms(fixed(&[h1, h2])?, fixed(&[m1, m2])?)?.checked_neg()?,
        _ => return None,
    };
    clock_ms(hour, minute)?
        .checked_add(second.checked_mul(SECOND_MS)?)?
        .checked_add(millisecond)?
        .checked_add(day_ms)?
        .checked_sub(offset_ms)
}

/// A field of fixed width: digits only.
fn fixed(digits: &[u8]) -> Option<i64> {
    i64::try_from(number(digits)?).ok()
}

/// Milliseconds since midnight of a time of day, or the size of an offset from UTC: the bounds are the same.
fn clock_ms(hour: i64, minute: i64) -> Option<i64> {
    if hour >= 24 || minute >= 60 {
        return None;
    }
    hour.checked_mul(HOUR_MS)?.checked_add(minute.checked_mul(MINUTE_MS)?)
}

/// Days in 400 Gregorian years, after which the calendar repeats.
const ERA_DAYS: i64 = 146_097;
/// Days from 0000-03-01, where eras begin, to 1970-01-01.
const EPOCH_FROM_MARCH: i64 = 719_468;

/// Days since 1970-01-01 of a date, if there is such a date.
fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if day < 1 || day > month_days {
        return None;
    }
    // January and February belong to the year before, so that the leap day is the last day of a year.
    let march_year = if month <= 2 { year.checked_sub(1)? } else { year };
    let (era, era_year) = (march_year.div_euclid(400), march_year.rem_euclid(400));
    // Counted from March, months have 31 and 30 days in a pattern of five months and 153 days.
    let march_month = month.checked_add(9)?.rem_euclid(12);
    let year_day = march_month.checked_mul(153)?.checked_add(2)?.div_euclid(5).checked_add(day)?.checked_sub(1)?;
    let leap_days = era_year.div_euclid(4).checked_sub(era_year.div_euclid(100))?;
    let era_day = era_year.checked_mul(365)?.checked_add(leap_days)?.checked_add(year_day)?;
    era.checked_mul(ERA_DAYS)?.checked_add(era_day)?.checked_sub(EPOCH_FROM_MARCH)
}

/// Year, month and day of a day counted from 1970-01-01. Only called for days of the years 0 to 9999.
#[expect(clippy::arithmetic_side_effects, reason = "days of the years 0 to 9999 are far from the bounds of i64")]
const fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + EPOCH_FROM_MARCH;
    let (era, era_day) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
    // Takes out the leap days of the era so far: one each 4 years, none each 100, and the one that ends the era.
    let era_year = (era_day - era_day / 1460 + era_day / 36_524 - era_day / 146_096) / 365;
    let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
    let march_month = (5 * year_day + 2) / 153;
    let day = year_day - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + era_year + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// Midnight of the day, rounding down before 1970 too. The first days of the 64-bit range have none.
fn to_date(ms: i64) -> Option<i64> {
    ms.checked_sub(ms.rem_euclid(DAY_MS))
}

/// Cedar text of a datetime, `datetime("2024-02-29")` or `datetime("2024-02-29T12:30:00.500Z")`. Beyond the years
/// 0000 to 9999, which no literal can name, it is an offset from 1970.
pub fn datetime_text(ms: i64) -> String {
    if !LITERAL_MS.contains(&ms) {
        return format!("datetime(\"1970-01-01\").offset({})", duration_text(ms));
    }
    let (year, month, day) = civil_from_days(ms.div_euclid(DAY_MS));
    let time = ms.rem_euclid(DAY_MS);
    let mut text = format!("datetime(\"{year:04}-{month:02}-{day:02}");
    if time != 0 {
        let (hour, minute, second) = (time / HOUR_MS, time % HOUR_MS / MINUTE_MS, time % MINUTE_MS / SECOND_MS);
        let _ = write!(text, "T{hour:02}:{minute:02}:{second:02}");
        if time % SECOND_MS != 0 {
            let _ = write!(text, ".{:03}", time % SECOND_MS);
        }
        text.push('Z');
    }
    text.push_str("\")");
    text
}

// duration -----------------------------------------------------------------------------------------------------------

/// The units of a duration in the only order they may appear in, with their milliseconds.
const UNITS: [(&str, u64); 5] = [
    ("d", DAY_MS.unsigned_abs()),
    ("h", HOUR_MS.unsigned_abs()),
    ("m", MINUTE_MS.unsigned_abs()),
    ("s", 1000),
    ("ms", 1),
];

/// Parses `-?` and at least one of `1d2h3m4s5ms` in this order, each at most once, into milliseconds.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut bytes) = sign(text.as_bytes());
    if bytes.is_empty() {
        return None;
    }
    let mut units = UNITS.iter();
    // All parts have the same sign, so the sum of magnitudes overflows when, and only when, the duration does.
    let mut magnitude = 0_u64;
    while !bytes.is_empty() {
        let (count, rest) = leading_number(bytes)?;
        // A unit ends where the next number begins, which tells `5m` from `5ms`.
        let unit_len = rest.iter().position(u8::is_ascii_digit).unwrap_or(rest.len());
        let (unit, rest) = rest.split_at_checked(unit_len)?;
        // Moves past every unit up to this one, so that none comes twice or out of order.
        let (_, unit_ms) = units.find(|(name, _)| name.as_bytes() == unit)?;
        magnitude = magnitude.checked_add(count.checked_mul(*unit_ms)?)?;
        bytes = rest;
    }
    signed(negative, magnitude)
}

/// Cedar text of a duration, `duration("1d2h30m")`, in the largest units that fit.
pub fn duration_text(ms: i64) -> String {
    let mut text = String::from(if ms < 0 { "duration(\"-" } else { "duration(\"" });
    let mut left = ms.unsigned_abs();
    for (unit, unit_ms) in UNITS {
        let count = left.checked_div(unit_ms).unwrap_or(0);
        left = left.checked_rem(unit_ms).unwrap_or(0);
        if count > 0 || (ms == 0 && unit == "ms") {
            let _ = write!(text, "{count}{unit}");
        }
    }
    text.push_str("\")");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(text: &str) -> &str {
        text.split('"').nth(1).unwrap()
    }

    #[test]
    fn names_are_unique_and_found() {
        for f in ExtFn::ALL {
            assert_eq!(ExtFn::from_name(f.name()), Some(f));
        }
        assert_eq!(ExtFn::from_name("unknown"), None);
        assert_eq!(ExtFn::from_name("contains"), None);
        assert_eq!(ExtFn::ALL.iter().filter(|f| !f.is_method()).count(), 4);
    }

    #[test]
    fn decimals() {
        for (text, value) in [
            ("0.0", 0),
            ("-0.0", 0),
            ("01.0", 10_000),
            ("-0.5", -5000),
            ("12.3456", 123_456),
            ("0000000000000000000000000000000000000001.0", 10_000),
            ("922337203685477.5807", i64::MAX),
            ("-922337203685477.5808", i64::MIN),
        ] {
            assert_eq!(parse_decimal(text), Some(value), "{text}");
            assert_eq!(parse_decimal(literal(&decimal_text(value))), Some(value), "{text}");
        }
        for text in [
            "",
            "-",
            ".",
            "1",
            "1.",
            ".5",
            "-.5",
            "+1.0",
            "1.00000",
            "1.0 ",
            " 1.0",
            "1.0.0",
            "--1.0",
            "1.-0",
            "1.0e1",
            "922337203685477.5808",
            "-922337203685477.5809",
            "99999999999999999999.0",
            "\u{661}.0",
            "1.\u{661}",
            "1.0\n",
        ] {
            assert_eq!(parse_decimal(text), None, "{text:?}");
        }
        assert_eq!(decimal_text(123_000), "decimal(\"12.3\")");
        assert_eq!(decimal_text(-1), "decimal(\"-0.0001\")");
    }

    #[test]
    fn addresses() {
        let ip = |text: &str| parse_ip(text).unwrap();
        assert_eq!(ip("127.0.0.1"), ip("127.0.0.1/32"));
        assert_eq!(ip("::1"), ip("0:0::0001/128"));
        assert_ne!(ip("10.0.0.1/8"), ip("10.0.0.0/8"));
        assert_ne!(ip("::ffff:102:304"), ip("1.2.3.4"));
        assert!(parse_ip("ABCD:EF01:2345:6789:ABCD:EF01:2345:6789/128").is_some());
        for text in [
            "",
            "/8",
            "1.2.3.4/",
            "1.2.3.4/33",
            "1.2.3.4/08",
            "1.2.3.4/00",
            "1.2.3.4/+8",
            "::/129",
            "::/0128",
            "01.2.3.4",
            "1.2.3",
            "1.2.3.4.5",
            "::ffff:1.2.3.4",
            "::1.2.3.4/96",
            "fe80::1%1",
            "[::1]",
            "1.2.3.4:80",
            "::1/12/8",
            " ::1",
            "::1/1.5",
            "0001:0002:0003:0004:0005:0006:0007:00008",
        ] {
            assert_eq!(parse_ip(text), None, "{text:?}");
        }
        for text in ["1.2.3.4", "1.2.3.4/0", "::", "::/0", "::ffff:102:304", "::102:304", "1::2:0:0:3/127"] {
            assert_eq!(ip_text(&ip(text)), format!("ip(\"{text}\")"));
        }
    }

    #[test]
    fn ranges() {
        let within = |a: &str, b: &str| is_in_range(&parse_ip(a).unwrap(), &parse_ip(b).unwrap());
        assert!(within("10.1.2.3", "10.0.0.9/8"));
        assert!(within("10.1.2.3", "0.0.0.0/0"));
        assert!(within("0.0.0.0/0", "255.0.0.0/0"));
        assert!(within("ffff::", "::/0"));
        assert!(within("1.2.3.4", "1.2.3.4"));
        assert!(!within("10.0.0.0/7", "10.0.0.0/8"));
        assert!(!within("11.0.0.0", "10.0.0.0/8"));
        assert!(!within("::1", "0.0.0.0/0"));
        assert!(!within("1.2.3.4", "::/0"));
        let loopback = |text: &str| is_loopback(&parse_ip(text).unwrap());
        assert!(loopback("127.3.2.1/8") && !loopback("127.3.2.1/7") && loopback("::1") && !loopback("::1/127"));
        let multicast = |text: &str| is_multicast(&parse_ip(text).unwrap());
        assert!(
            multicast("239.0.0.1/4") && !multicast("239.0.0.1/3") && multicast("ff00::/8") && !multicast("ff00::/7")
        );
    }

    #[test]
    fn datetimes() {
        for (text, value) in [
            ("1970-01-01", 0),
            ("1969-12-31T23:59:59.999Z", -1),
            ("2000-02-29T00:00:00Z", 951_782_400_000),
            ("0000-01-01", *LITERAL_MS.start()),
            ("9999-12-31T23:59:59.999Z", *LITERAL_MS.end()),
            ("0000-01-01T00:00:00+2359", LITERAL_MS.start() - 86_340_000),
            ("9999-12-31T23:59:59.999-2359", LITERAL_MS.end() + 86_340_000),
            ("2024-01-01T01:00:00.000+0100", 1_704_067_200_000),
        ] {
            assert_eq!(parse_datetime(text), Some(value), "{text}");
        }
        for text in [
            "",
            "2024-1-01",
            "2023-02-29",
            "1900-02-29",
            "2024-02-30",
            "2024-00-01",
            "2024-13-01",
            "2024-01-00",
            "2024-01-01T",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:60:00Z",
            "2024-01-01T23:59:60Z",
            "2024-01-01T00:00:00.00Z",
            "2024-01-01T00:00:00.0000Z",
            "2024-01-01T00:00:00z",
            "2024-01-01t00:00:00Z",
            "2024-01-01 00:00:00Z",
            "2024-01-01T00:00:00+01:00",
            "2024-01-01T00:00:00+2400",
            "2024-01-01T00:00:00+0060",
            "2024-01-01T00:00:00+01",
            "-2024-01-01",
            "02024-01-01",
            "2024-01-01Z",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00Z ",
            "2024-01-0\u{661}",
            "\u{661}\u{661}-01-01",
        ] {
            assert_eq!(parse_datetime(text), None, "{text:?}");
        }
        assert_eq!(datetime_text(0), "datetime(\"1970-01-01\")");
        assert_eq!(datetime_text(-1), "datetime(\"1969-12-31T23:59:59.999Z\")");
        assert_eq!(datetime_text(LITERAL_MS.end() + 1), "datetime(\"1970-01-01\").offset(duration(\"2932897d\"))");
    }

    /// Every day that a literal can name, there and back, against plain counting.
    #[test]
    fn calendar_counts_every_day() {
        let mut expected = LITERAL_MS.start() / DAY_MS;
        for year in 0..=9999 {
            for month in 1..=12 {
                let mut day = 1;
                while let Some(days) = days_from_civil(year, month, day) {
                    assert_eq!(days, expected);
                    assert_eq!(civil_from_days(days), (year, month, day));
                    expected += 1;
                    day += 1;
                }
                assert!((29..=32).contains(&day));
            }
        }
        assert_eq!(expected, (LITERAL_MS.end() + 1) / DAY_MS);
    }

    #[test]
    fn dates_and_times_round_down() {
        let bump = Bump::new();
        let run = |f, n| call(f, &[Value::Datetime(n)], &bump);
        assert!(matches!(run(ExtFn::ToDate, -1), Ok(Value::Datetime(n)) if n == -DAY_MS));
        assert!(matches!(run(ExtFn::ToTime, -1), Ok(Value::Duration(n)) if n == DAY_MS - 1));
        assert!(matches!(run(ExtFn::ToTime, -DAY_MS), Ok(Value::Duration(0))));
        assert_eq!(run(ExtFn::ToDate, i64::MIN).unwrap_err(), ExtError::Overflow);
        assert!(run(ExtFn::ToTime, i64::MIN).is_ok());
    }

    #[test]
    fn durations() {
        for (text, value) in [
            ("0ms", 0),
            ("-0d", 0),
            ("1d2h3m4s5ms", 93_784_005),
            ("-1m", -60_000),
            ("5m", 300_000),
            ("5ms", 5),
            ("1m5ms", 60_005),
            ("00000000000000000000000000001s", 1000),
            ("9223372036854775807ms", i64::MAX),
            ("-9223372036854775808ms", i64::MIN),
            ("106751991167d7h12m55s807ms", i64::MAX),
            ("-106751991167d7h12m55s808ms", i64::MIN),
        ] {
            assert_eq!(parse_duration(text), Some(value), "{text}");
            assert_eq!(parse_duration(literal(&duration_text(value))), Some(value), "{text}");
        }
        for text in [
            "",
            "-",
            "d",
            "1",
            "1x",
            "1d1d",
            "1h1d",
            "1ms1s",
            "+1d",
            "1d ",
            "1d-1h",
            "--1d",
            "1.5d",
            "1D",
            "1mss",
            "1dh",
            "9223372036854775808ms",
            "-9223372036854775809ms",
            "18446744073709551616ms",
            "106751991168d",
            "106751991167d7h12m55s808ms",
            "-106751991167d7h12m55s809ms",
            "9223372036854775807d",
            "\u{661}d",
        ] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
        assert_eq!(duration_text(0), "duration(\"0ms\")");
        assert_eq!(duration_text(-90_000), "duration(\"-1m30s\")");
    }

    #[test]
    fn arity_is_checked_before_types() {
        assert_eq!(fold(ExtFn::Decimal, &[]), Err(ExtError::WrongArity));
        assert_eq!(fold(ExtFn::Decimal, &[Val::Long(1), Val::Long(1)]), Err(ExtError::WrongArity));
        assert_eq!(fold(ExtFn::IsInRange, &[Val::Long(1)]), Err(ExtError::WrongArity));
        assert_eq!(fold(ExtFn::IsInRange, &[Val::Long(1), Val::Long(1)]), Err(ExtError::WrongType));
        assert_eq!(fold(ExtFn::Ip, &[Val::Str("x".into())]), Err(ExtError::BadLiteral));
    }
}
