//! Windows by id: a count of whole minutes, hours, days or months since 1970 in UTC.
//!
//! A window is a name in a key, never a counter that is set back: what was reserved in one is settled in the same one,
//! whatever the clock says by then. Months are those of the Gregorian calendar; the civil-date arithmetic is Howard
//! Hinnant's `days_from_civil` (<https://howardhinnant.github.io/date_algorithms.html>).

/// How many kinds of window there are.
pub const WINDOWS: usize = 5;

/// A kind of window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Window {
    /// Never ends
    Total,
    /// A minute
    Minute,
    /// An hour
    Hour,
    /// A day of UTC
    Day,
    /// A calendar month of UTC
    Month,
}

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 86_400_000;
/// The last window id a cell can carry (see `layout::Word`), less one for safety.
const ID_MAX: i64 = u32::MAX as i64 - 2;

impl Window {
    /// All of them, in the order of every array of windows.
    pub const ALL: [Self; WINDOWS] = [Self::Total, Self::Minute, Self::Hour, Self::Day, Self::Month];

    /// Its name in files and in Python.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Minute => "1m",
            Self::Hour => "1h",
            Self::Day => "1d",
            Self::Month => "month",
        }
    }

    /// The window of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|window| window.name() == name)
    }

    /// Its place in an array of windows.
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The id of the window that `now_ms` lies in. Times before 1970 lie in the first.
    #[inline]
    pub fn id_at(self, now_ms: i64) -> u32 {
        let now_ms = now_ms.max(0);
        let id = match self {
            Self::Total => 0,
            Self::Minute => now_ms.div_euclid(MINUTE_MS),
            Self::Hour => now_ms.div_euclid(HOUR_MS),
            Self::Day => now_ms.div_euclid(DAY_MS),
            Self::Month => month_of(now_ms.div_euclid(DAY_MS)),
        };
        u32::try_from(id.min(ID_MAX)).unwrap_or(0)
    }

    /// When window `id` began, in milliseconds since 1970; `None` for the one that never did.
    pub fn start_ms(self, id: u32) -> Option<i64> {
        let id = i64::from(id);
        match self {
            Self::Total => None,
            Self::Minute => Some(id.saturating_mul(MINUTE_MS)),
            Self::Hour => Some(id.saturating_mul(HOUR_MS)),
            Self::Day => Some(id.saturating_mul(DAY_MS)),
            Self::Month => Some(days_before_month(id).saturating_mul(DAY_MS)),
        }
    }

    /// When window `id` ends; `None` for the one that never does.
    pub fn end_ms(self, id: u32) -> Option<i64> {
        self.start_ms(id.saturating_add(1))
    }

    /// Periods kept per node: as many windows may be pinned at once by holds that outlive them. A stream of a quarter
    /// of an hour is common, one over four hours or days is not.
    pub const fn ring_len(self) -> u32 {
        // One period is the hardest case, and the model checker counts every word.
        if cfg!(loom) {
            return 1;
        }
        match self {
            Self::Total => 1,
            Self::Minute => 16,
            Self::Hour | Self::Day | Self::Month => 4,
        }
    }
}

/// Months since January 1970 of a day since 1970.
#[inline]
fn month_of(day: i64) -> i64 {
    // Days are at most 2^63 / DAY_MS, so nothing here comes near an overflow.
    let shifted = day.saturating_add(719_468);
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let leap = day_of_era / 1_460;
    let century = day_of_era / 36_524;
    let cycle = day_of_era / 146_096;
    let year_of_era = day_of_era.saturating_sub(leap).saturating_add(century).saturating_sub(cycle) / 365;
    let days_before = year_of_era.saturating_mul(365).saturating_add(year_of_era / 4).saturating_sub(year_of_era / 100);
    let day_of_year = day_of_era.saturating_sub(days_before);
    let month_from_march = day_of_year.saturating_mul(5).saturating_add(2) / 153;
    let (month, carry) = if month_from_march < 10 {
        (month_from_march.saturating_add(2), 0)
    } else {
        (month_from_march.saturating_sub(10), 1)
    };
    let year = year_of_era.saturating_add(era.saturating_mul(400)).saturating_add(carry);
    year.saturating_sub(1970).saturating_mul(12).saturating_add(month)
}

/// Days since 1970 of the first day of a month since January 1970.
fn days_before_month(month: i64) -> i64 {
    let year = month.div_euclid(12).saturating_add(1970);
    let month = month.rem_euclid(12).saturating_add(1);
    let year = if month <= 2 { year.saturating_sub(1) } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let from_march = if month > 2 { month.saturating_sub(3) } else { month.saturating_add(9) };
    let day_of_year = from_march.saturating_mul(153).saturating_add(2) / 5;
    let day_of_era = year_of_era
        .saturating_mul(365)
        .saturating_add(year_of_era / 4)
        .saturating_sub(year_of_era / 100)
        .saturating_add(day_of_year);
    era.saturating_mul(146_097).saturating_add(day_of_era).saturating_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::Window;

    #[test]
    fn months_begin_and_end_where_the_calendar_says() {
        // 2024-02-29 23:59:59.999 and 2024-03-01 00:00, both UTC
        let (last, next) = (1_709_251_199_999, 1_709_251_200_000);
        let february = Window::Month.id_at(last);
        assert_eq!(february, 54 * 12 + 1);
        assert_eq!(Window::Month.id_at(next), february + 1);
        assert_eq!(Window::Month.end_ms(february), Some(next));
        assert_eq!(Window::Month.start_ms(february), Some(1_706_745_600_000));
        assert_eq!(Window::Month.id_at(0), 0);
        assert_eq!(Window::Month.start_ms(0), Some(0));
    }

    #[test]
    fn every_day_of_two_centuries_lies_in_its_month() {
        for day in 0..73_000_i64 {
            let now_ms = day * 86_400_000;
            for at in [now_ms, now_ms + 86_399_999] {
                for window in Window::ALL {
                    let id = window.id_at(at);
                    assert!(window.start_ms(id).is_none_or(|start| start <= at), "{window:?} {at}");
                    assert!(window.end_ms(id).is_none_or(|end| at < end), "{window:?} {at}");
                }
            }
        }
    }

    #[test]
    fn times_out_of_reach_have_an_id_all_the_same() {
        for window in Window::ALL {
            assert_eq!(window.id_at(i64::MIN), 0);
            let _ = window.id_at(i64::MAX);
        }
    }
}
