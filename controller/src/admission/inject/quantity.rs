//! Kubernetes' quantities, as far as amounts of CPU and memory go: the grammar of
//! `k8s.io/apimachinery/pkg/api/resource`, and bounds within which a sidecar can live.

use super::options::Text;

/// Quantities are counted in billionths, the finest that the grammar knows.
const ONE: u128 = 1_000_000_000;
/// More digits are a mistake, and could run over.
const BYTES_MAX: usize = 20;

/// Cores.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "Text")]
pub struct Cpu(pub Quantity);

/// Bytes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "Text")]
pub struct Memory(pub Quantity);

/// Compared by what it comes to, as 500m and 0.5 are the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    billionths: u128,
    pub text: String,
}

impl TryFrom<Text> for Cpu {
    type Error = String;

    fn try_from(Text(text): Text) -> Result<Self, String> {
        let allowed = ONE / 1000..=1024 * ONE;
        match Quantity::parse(&text).filter(|of| allowed.contains(&of.billionths)) {
            Some(quantity) => Ok(Self(quantity)),
            None => Err(format!(
                "\"{text}\" is no amount of CPU for a sidecar; allowed is 1m to 1024, such as 10m or 0.5"
            )),
        }
    }
}

impl TryFrom<Text> for Memory {
    type Error = String;

    fn try_from(Text(text): Text) -> Result<Self, String> {
        let allowed = (4 << 20) * ONE..=(1 << 40) * ONE;
        match Quantity::parse(&text).filter(|of| allowed.contains(&of.billionths)) {
            Some(quantity) => Ok(Self(quantity)),
            None => Err(format!(
                "\"{text}\" is no amount of memory for a sidecar; allowed is 4Mi to 1Ti, such as 64Mi (mebibytes) or 64M"
            )),
        }
    }
}

impl Quantity {
    /// `digits[.digits][suffix]`; what is finer than billionths is rounded up.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > BYTES_MAX {
            return None;
        }
        let number = text.strip_prefix('+').unwrap_or(text);
        let of_number = |c: char| c.is_ascii_digit() || c == '.';
        let end = number.find(|c| !of_number(c)).unwrap_or(number.len());
        let (number, suffix) = number.split_at_checked(end)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let mantissa: u128 = format!("{whole}{fraction}").parse().ok()?;
        let divisor = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        Some(Self {
            billionths: mantissa.checked_mul(scale(suffix)?)?.div_ceil(divisor),
            text: text.to_owned(),
        })
    }

    /// Rounded up.
    pub fn ceil(&self) -> u64 {
        u64::try_from(self.billionths.div_ceil(ONE)).unwrap_or(u64::MAX)
    }
}

/// What a suffix stands for, in billionths.
fn scale(suffix: &str) -> Option<u128> {
    let power = |base: u128, power: u32| base.checked_pow(power)?.checked_mul(ONE);
    match suffix {
        "n" => Some(1),
        "u" => Some(1_000),
        "m" => Some(1_000_000),
        "" => Some(ONE),
        "k" => power(1000, 1),
        "M" => power(1000, 2),
        "G" => power(1000, 3),
        "T" => power(1000, 4),
        "P" => power(1000, 5),
        "E" => power(1000, 6),
        "Ki" => power(1024, 1),
        "Mi" => power(1024, 2),
        "Gi" => power(1024, 3),
        "Ti" => power(1024, 4),
        "Pi" => power(1024, 5),
        "Ei" => power(1024, 6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            10_u128.checked_pow(u32::try_from(exponent.checked_add(9)?).ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_does() {
        for (text, billionths) in [
            ("1", Some(ONE)),
            ("0.5", Some(ONE / 2)),
            (".5", Some(ONE / 2)),
            ("5.", Some(5 * ONE)),
            ("10m", Some(ONE / 100)),
            ("1n", Some(1)),
            ("0.1n", Some(1)),
            ("+1", Some(ONE)),
            ("1e3", Some(1000 * ONE)),
            ("1E-3", Some(ONE / 1000)),
            ("1E", Some(1_000_000_000_000_000_000 * ONE)),
            ("64Mi", Some((64 << 20) * ONE)),
            ("64M", Some(64_000_000 * ONE)),
            ("1.5Gi", Some((3 << 29) * ONE)),
            ("", None),
            (".", None),
            ("-1", None),
            ("1 Mi", None),
            ("64MB", None),
            ("1mi", None),
            ("1.2.3", None),
            ("1e99", None),
            ("1e-99", None),
            ("١", None),
            ("1Mi️", None),
            ("999999999999999999999999", None),
            (
                "99999999999999999999",
                Some(99_999_999_999_999_999_999 * ONE),
            ),
        ] {
            let read = Quantity::parse(text).map(|quantity| quantity.billionths);
            assert_eq!(read, billionths, "{text:?}");
        }
    }

    #[test]
    fn amounts_are_compared_and_rounded_up() {
        let of = |text: &str| Quantity::parse(text).unwrap();
        assert!(of("500m") < of("0.6"));
        assert!(of("64M") < of("64Mi"));
        assert!(of("1Gi") > of("999Mi"));
        assert_eq!(
            (of("500m").ceil(), of("2.1").ceil(), of("3").ceil()),
            (1, 3, 3)
        );
    }
}
