//! What model calls cost: nano-USD per million tokens, for an open set of components.
//!
//! Multiplied in 128 bits and rounded up once for each hold, so that a sum of parts never costs less than the whole.
//! What is not in the table has no price: there is no default and no guess.

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::error::BudgetError;
use crate::limits::{AMOUNT_MAX, PRICE_MAX, PRICES_MAX};

const PER_MILLION: u128 = 1_000_000;

/// A model or one of its components has no price.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unpriced {
    /// The model is not in the table
    #[error("model `{model}` has no price")]
    Model {
        /// The model that was asked for
        model: String,
    },
    /// The component is not in the model's table
    #[error("component `{component}` of model `{model}` has no price")]
    Component {
        /// The model
        model: String,
        /// The component that was asked for
        component: String,
    },
    /// The product is beyond what one hold can carry
    #[error("the cost of {count} tokens of model `{model}` is beyond the largest amount")]
    TooLarge {
        /// The model
        model: String,
        /// Tokens of all components
        count: u64,
    },
}

/// Prices of one model, by component, sorted.
type Components = Box<[(Box<str>, u64)]>;

/// Prices by model and component.
#[derive(Debug, Clone, Default)]
pub struct PriceTable {
    /// Sorted by model
    models: Box<[(Box<str>, Components)]>,
}

impl PriceTable {
    /// Makes a table of (model, (component, nano-USD per million tokens)).
    pub fn new(models: Vec<(String, Vec<(String, u64)>)>) -> Result<Self, BudgetError> {
        let refuse = |message: String| Err(BudgetError::Spec { message });
        if models.len() > PRICES_MAX {
            return refuse(format!("{} models have prices, the limit is {PRICES_MAX}", models.len()));
        }
        let mut table: Vec<(Box<str>, Components)> = Vec::with_capacity(models.len());
        for (model, components) in models {
            if components.len() > PRICES_MAX {
                return refuse(format!("model `{model}` has {} prices, the limit is {PRICES_MAX}", components.len()));
            }
            let mut sorted: Vec<(Box<str>, u64)> =
                components.into_iter().map(|(name, price)| (name.into_boxed_str(), price)).collect();
            sorted.sort_unstable();
            if let Some((name, price)) = sorted.iter().find(|(_, price)| *price > PRICE_MAX) {
                return refuse(format!("the price {price} of `{name}` of model `{model}` is above {PRICE_MAX}"));
            }
            if let Some(pair) = sorted.windows(2).find(|pair| matches!(pair, [a, b] if a.0 == b.0)) {
                let name = pair.first().map(|entry| entry.0.clone()).unwrap_or_default();
                return refuse(format!("model `{model}` has two prices of `{name}`"));
            }
            table.push((model.into_boxed_str(), sorted.into()));
        }
        table.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        if let Some([a, _]) = table.windows(2).find(|pair| matches!(pair, [a, b] if a.0 == b.0)) {
            return refuse(format!("model `{}` has two price tables", a.0));
        }
        Ok(Self { models: table.into() })
    }

    /// The place of a model, for batches of calls.
    pub fn index_of(&self, model: &str) -> Option<u16> {
        let place = self.models.binary_search_by(|(name, _)| (**name).cmp(model)).ok()?;
        u16::try_from(place).ok()
    }

    /// Names of the models, sorted.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.models.iter().map(|(name, _)| &**name)
    }

    /// What `usage` of a model costs, in nano-USD, rounded up once.
    ///
    /// # Errors
    /// [`Unpriced`] if anything that was used has no price; a component of which nothing was used needs none.
    pub fn cost(&self, model: &str, usage: &[(&str, u64)]) -> Result<i64, Unpriced> {
        let unknown = || Unpriced::Model { model: model.to_owned() };
        let place = self.index_of(model).ok_or_else(unknown)?;
        self.cost_at(place, usage)
    }

    /// The same for a model by its place.
    pub fn cost_at(&self, place: u16, usage: &[(&str, u64)]) -> Result<i64, Unpriced> {
        let Some((model, components)) = self.models.get(usize::from(place)) else {
            return Err(Unpriced::Model { model: format!("#{place}") });
        };
        let mut total: u128 = 0;
        let mut tokens: u64 = 0;
        for (component, count) in usage.iter().filter(|(_, count)| *count > 0) {
            let found = components.binary_search_by(|(name, _)| (**name).cmp(component));
            let price = found.ok().and_then(|at| components.get(at)).map(|(_, price)| *price);
            let Some(price) = price else {
                let (model, component) = (model.to_string(), (*component).to_owned());
                return Err(Unpriced::Component { model, component });
            };
            total = total.saturating_add(u128::from(price).saturating_mul(u128::from(*count)));
            tokens = tokens.saturating_add(*count);
        }
        let nano_usd = total.div_ceil(PER_MILLION);
        match i64::try_from(nano_usd) {
            Ok(cost) if cost <= AMOUNT_MAX => Ok(cost),
            _ => Err(Unpriced::TooLarge { model: model.to_string(), count: tokens }),
        }
    }

    /// SHA-256 over the sorted table, one line for each price, in hex: the same prices give the same digest.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (model, components) in &self.models {
            for (component, price) in components {
                hash.update(format!("{model}\t{component}\t{price}\n"));
            }
        }
        hash.finalize().iter().fold(String::with_capacity(64), |hex, byte| hex + &format!("{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::{PriceTable, Unpriced};

    fn table() -> PriceTable {
        let gpt = ("gpt-5".to_owned(), vec![("prompt".to_owned(), 1_250_000_000), ("completion".to_owned(), 3)]);
        PriceTable::new(vec![gpt, ("free".to_owned(), vec![("prompt".to_owned(), 0)])]).unwrap()
    }

    #[test]
    fn a_cost_is_rounded_up_once() {
        let table = table();
        assert_eq!(table.cost("gpt-5", &[("prompt", 1_000)]), Ok(1_250_000));
        assert_eq!(table.cost("gpt-5", &[("completion", 1)]), Ok(1), "any use costs something");
        // Two parts of 3e-6 and 0.5 nano-USD together are less than one.
        assert_eq!(table.cost("gpt-5", &[("completion", 1), ("completion", 1)]), Ok(1));
        assert_eq!(table.cost("free", &[("prompt", u64::MAX)]), Ok(0));
    }

    #[test]
    fn what_has_no_price_is_an_error_unless_nothing_was_used() {
        let table = table();
        assert!(matches!(table.cost("gpt-6", &[]), Err(Unpriced::Model { .. })));
        assert!(matches!(table.cost("gpt-5", &[("cached", 1)]), Err(Unpriced::Component { .. })));
        assert_eq!(table.cost("gpt-5", &[("cached", 0)]), Ok(0));
        assert!(matches!(table.cost("gpt-5", &[("prompt", u64::MAX)]), Err(Unpriced::TooLarge { .. })));
    }

    #[test]
    fn a_table_says_each_price_once_and_its_digest_knows_no_order() {
        let twice = vec![("a".to_owned(), 1), ("a".to_owned(), 2)];
        assert!(PriceTable::new(vec![("m".to_owned(), twice)]).is_err());
        assert!(PriceTable::new(vec![("m".to_owned(), vec![]), ("m".to_owned(), vec![])]).is_err());
        let (x, y) = (("x".to_owned(), vec![("p".to_owned(), 1)]), ("y".to_owned(), vec![("p".to_owned(), 2)]));
        let one = PriceTable::new(vec![x.clone(), y.clone()]).unwrap();
        let other = PriceTable::new(vec![y, x]).unwrap();
        assert_eq!(one.digest(), other.digest());
        assert_ne!(one.digest(), PriceTable::default().digest());
    }
}
