//! A model call: what it holds when it is admitted, what it is charged while it streams, how it ends.
//!
//! The worst case is held, or in incremental admission a part that is topped up while the call runs. The prompt is
//! charged when the call is dispatched, for it is spent whatever comes back. A call that streamed and ends without a
//! report counts as what was charged, the prompt and the cost included; one that did not stream may have used
//! everything, and counts in full.
//!
//! The gate decides in `check`; this file knows no policy and makes no call.

use std::sync::{Arc, Mutex, PoisonError};

use super::payer::Handle;
use super::standing::Standing;
use crate::audit::entry::{push_number, push_text};
use crate::budget::Charge;
use crate::budget::denial::{Denial, DenialKind};
use crate::budget::error::BudgetError;
use crate::budget::ledger::{Ledger, Node};
use crate::budget::price::{PriceTable, Unpriced};
use crate::budget::tree::Admission;
use crate::budget::unit::{Amounts, Unit};
use crate::limits::{AMOUNT_MAX, MODEL_NAME_BYTES_MAX};

/// Components that a prompt may be billed as, each in place of `prompt`.
const PROMPT_SIDE: [&str; 3] = ["prompt", "cached", "cache_write"];
/// Components that what is generated may be billed as.
const COMPLETION_SIDE: [&str; 2] = ["completion", "reasoning"];

/// A model call that somebody asks for.
#[derive(Debug, Clone, Copy)]
pub struct ModelRequest<'a> {
    /// The model's name, as in the price table
    pub model: &'a str,
    /// Tokens of the prompt
    pub prompt_tokens: i64,
    /// The most tokens of one completion
    pub max_tokens: i64,
    /// How many completions
    pub n: i64,
}

impl ModelRequest<'_> {
    /// What is wrong with it.
    pub(super) fn fault(&self) -> Option<String> {
        let counts = [("prompt_tokens", self.prompt_tokens), ("max_tokens", self.max_tokens), ("n", self.n)];
        if let Some((name, count)) = counts.into_iter().find(|(_, count)| !(0..=AMOUNT_MAX).contains(count)) {
            return Some(format!("{name} is {count}, not between 0 and {AMOUNT_MAX}"));
        }
        if self.n == 0 {
            return Some("n is 0; a call makes at least one completion".to_owned());
        }
        let bytes = self.model.len();
        if bytes == 0 || bytes > MODEL_NAME_BYTES_MAX {
            return Some(format!("the model's name has {bytes} bytes, not 1 to {MODEL_NAME_BYTES_MAX}"));
        }
        None
    }

    /// What policies read of it, as JSON with sorted keys.
    pub(super) fn json(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(b"{\"max_tokens\":");
        out.extend_from_slice(itoa::Buffer::new().format(self.max_tokens).as_bytes());
        push_text(&mut out, "model", self.model);
        push_number(&mut out, "n", self.n);
        push_number(&mut out, "prompt_tokens", self.prompt_tokens);
        out.push(b'}');
        out
    }

    /// The most that it can generate.
    fn completion_max(&self) -> i64 {
        self.max_tokens.saturating_mul(self.n)
    }
}

/// What a call is to hold at first, and by which rules it goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) amounts: Amounts,
    /// What dispatching it costs for certain
    pub(super) prompt: Amounts,
    /// Tokens that are held at a time; `None` if the worst case is held
    step: Option<i64>,
    priced: bool,
}

impl Plan {
    /// The amounts of a call, or why there are none.
    pub(super) fn draw(ledger: &Ledger, node: &Node, request: &ModelRequest<'_>) -> Result<Self, Box<Denial>> {
        let step = match ledger.admission() {
            Admission::Safe => None,
            Admission::Incremental => Some(ledger.spec().increment_tokens.max(1)),
        };
        let completion = step.map_or(request.completion_max(), |step| step.min(request.completion_max()));
        let tokens = request.prompt_tokens.saturating_add(completion);
        if tokens > AMOUNT_MAX {
            let message = format!("{tokens} tokens are more than one call can hold, {AMOUNT_MAX}; ask for less");
            return Err(Box::new(Denial::of(DenialKind::TooLarge, node.path(), message)));
        }
        let mut amounts = Amounts::of(Unit::Tokens, tokens).and(Unit::Requests, 1).and(Unit::InFlight, 1);
        let mut prompt = Amounts::of(Unit::Tokens, request.prompt_tokens);
        let priced = node.limits(Unit::NanoUsd);
        if priced {
            let table = &ledger.spec().prices;
            let refuse = |unpriced: Unpriced| Box::new(refused(node, &unpriced));
            let worst = worst_cost(table, request.model, request.prompt_tokens, completion).map_err(refuse)?;
            let certain = cost(table, request.model, request.prompt_tokens, 0).map_err(refuse)?;
            amounts = amounts.and(Unit::NanoUsd, worst);
            prompt = prompt.and(Unit::NanoUsd, certain);
        }
        Ok(Self { amounts, prompt, step, priced })
    }

    /// Without the money: what shadow mode holds of a model that has no price.
    pub(super) fn unpriced(request: &ModelRequest<'_>) -> Self {
        let tokens = request.prompt_tokens.saturating_add(request.completion_max()).min(AMOUNT_MAX);
        let amounts = Amounts::of(Unit::Tokens, tokens).and(Unit::Requests, 1).and(Unit::InFlight, 1);
        Self { amounts, prompt: Amounts::of(Unit::Tokens, request.prompt_tokens), step: None, priced: false }
    }
}

fn refused(node: &Node, unpriced: &Unpriced) -> Denial {
    let (kind, remedy) = match unpriced {
        Unpriced::TooLarge { .. } => (DenialKind::TooLarge, "ask for less".to_owned()),
        Unpriced::Model { model } | Unpriced::Component { model, .. } => {
            (DenialKind::Unpriced, format!("add it to the budgets under [price.\"{model}\"]"))
        }
    };
    let message = format!("{unpriced}, and budget `{}` or one above it counts money; {remedy}", node.path());
    Denial::of(kind, node.path(), message)
}

fn count(tokens: i64) -> u64 {
    u64::try_from(tokens).unwrap_or(0)
}

fn cost(prices: &PriceTable, model: &str, prompt: i64, completion: i64) -> Result<i64, Unpriced> {
    prices.cost(model, &[("prompt", count(prompt)), ("completion", count(completion))])
}

/// The most that so many tokens can cost, whichever components they are billed as.
fn worst_cost(prices: &PriceTable, model: &str, prompt: i64, completion: i64) -> Result<i64, Unpriced> {
    // `prompt` and `completion` must have a price; what else has none cannot be billed.
    let mut most = [cost(prices, model, prompt, 0)?, cost(prices, model, 0, completion)?];
    for (most, (names, tokens)) in
        most.iter_mut().zip([(PROMPT_SIDE.as_slice(), prompt), (COMPLETION_SIDE.as_slice(), completion)])
    {
        for name in names {
            match prices.cost(model, &[(name, count(tokens))]) {
                Ok(cost) => *most = cost.max(*most),
                Err(Unpriced::TooLarge { model, count }) => return Err(Unpriced::TooLarge { model, count }),
                Err(_) => {}
            }
        }
    }
    let [prompt, completion] = most;
    Ok(prompt.saturating_add(completion).min(AMOUNT_MAX))
}

/// What a provider says a call has used.
#[derive(Debug, Clone, Default)]
pub struct ModelUsage<'a> {
    /// Tokens of the prompt, those from a cache included; `None` for what the call was asked with
    pub prompt: Option<i64>,
    /// Of those, tokens that came from a cache
    pub cached: i64,
    /// Tokens that were generated; `None` for those that were charged
    pub completion: Option<i64>,
    /// Further components of the price table, with their counts; they cost, and count no tokens
    pub others: Vec<(&'a str, i64)>,
}

/// What a running call holds and has been charged.
#[derive(Debug, Clone, Copy)]
struct Progress {
    held: Amounts,
    charged: Amounts,
    /// Something was charged since it was dispatched
    streamed: bool,
}

/// A model call that was let through.
#[derive(Debug)]
pub struct ModelCall {
    /// `None` where nobody pays
    hold: Option<Handle>,
    /// Whether the run may go on
    standing: Option<Arc<Standing>>,
    model: Box<str>,
    prompt: i64,
    completion_max: i64,
    step: Option<i64>,
    priced: bool,
    progress: Mutex<Progress>,
}

impl ModelCall {
    pub(super) fn new(
        request: &ModelRequest<'_>,
        plan: Option<&Plan>,
        hold: Option<Handle>,
        standing: Option<&Arc<Standing>>,
    ) -> Self {
        let none = Progress { held: Amounts::NONE, charged: Amounts::NONE, streamed: false };
        Self {
            hold,
            standing: standing.cloned(),
            model: request.model.into(),
            prompt: request.prompt_tokens,
            completion_max: request.completion_max(),
            step: plan.and_then(|plan| plan.step),
            priced: plan.is_some_and(|plan| plan.priced),
            progress: Mutex::new(plan.map_or(none, |plan| Progress {
                held: plan.amounts,
                charged: plan.prompt,
                ..none
            })),
        }
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens that were charged so far, the prompt included.
    pub fn charged_tokens(&self) -> i64 {
        self.progress().charged.get(Unit::Tokens)
    }

    /// Charges tokens as they appear. True: go on; false: stop, they are noted but not covered.
    ///
    /// Whoever was revoked meanwhile is told to stop, whatever the budget says.
    pub fn charge(&self, tokens: i64) -> bool {
        let covered = self.note(tokens);
        covered && !self.standing.as_ref().is_some_and(|standing| standing.stops(None))
    }

    fn note(&self, tokens: i64) -> bool {
        let Some(hold) = &self.hold else { return true };
        if !(0..=AMOUNT_MAX).contains(&tokens) {
            return hold.shadow;
        }
        let mut progress = self.progress();
        let total = progress.charged.get(Unit::Tokens).saturating_add(tokens);
        let mut after = Amounts::of(Unit::Tokens, total);
        if self.priced {
            // Of the whole stream and not of this piece: rounded up once.
            let completion = total.saturating_sub(self.prompt);
            let cost = cost(&hold.ledger().spec().prices, &self.model, self.prompt, completion);
            after = after.and(Unit::NanoUsd, cost.unwrap_or(AMOUNT_MAX));
        }
        if let Some(step) = self.step {
            self.top_up(hold, &mut progress, total, step);
        }
        let more = |unit: Unit| after.get(unit).saturating_sub(progress.charged.get(unit)).max(0);
        let more = Amounts::of(Unit::Tokens, more(Unit::Tokens)).and(Unit::NanoUsd, more(Unit::NanoUsd));
        let said = hold.charge(&more);
        (progress.charged, progress.streamed) = (after, true);
        said && (hold.shadow || covers(&progress.held, &after))
    }

    /// Holds more if the total is not covered: a step if there is room for it, else just what is needed.
    fn top_up(&self, hold: &Handle, progress: &mut Progress, total: i64, step: i64) {
        let covered = progress.held.get(Unit::Tokens);
        let most = self.prompt.saturating_add(self.completion_max);
        let needed = total.saturating_sub(covered);
        if needed <= 0 || total > most || !hold.is_own() {
            return;
        }
        let stepped = needed.max(step).min(most.saturating_sub(covered));
        for tokens in [stepped, needed] {
            let completion = covered.saturating_add(tokens).saturating_sub(self.prompt);
            let mut more = Amounts::of(Unit::Tokens, tokens);
            if self.priced {
                let prices = &hold.ledger().spec().prices;
                let Ok(cost) = worst_cost(prices, &self.model, self.prompt, completion) else { continue };
                more = more.and(Unit::NanoUsd, cost.saturating_sub(progress.held.get(Unit::NanoUsd)).max(0));
            }
            if hold.ledger().top_up(hold.id, &more).is_ok() {
                for unit in [Unit::Tokens, Unit::NanoUsd] {
                    let now = progress.held.get(unit).saturating_add(more.get(unit));
                    progress.held = progress.held.and(unit, now);
                }
                return;
            }
        }
    }

    /// Ends the call with what the provider says was used; false if it has ended before.
    ///
    /// What has no price costs the whole hold, or what the rest costs if that is more.
    pub fn settle(&self, usage: &ModelUsage<'_>) -> Result<bool, BudgetError> {
        let progress = self.progress();
        let Progress { charged, held: reserved, .. } = *progress;
        drop(progress);
        let prompt = usage.prompt.unwrap_or(self.prompt);
        let streamed = charged.get(Unit::Tokens).saturating_sub(self.prompt).max(0);
        let completion = usage.completion.unwrap_or(streamed);
        let counts = [prompt, usage.cached, completion].into_iter().chain(usage.others.iter().map(|(_, count)| *count));
        for amount in counts {
            crate::budget::unit::check_amount(Unit::Tokens, amount)?;
        }
        if usage.cached > prompt {
            let message = format!("cached is {}, more than the prompt of {prompt} tokens it is part of", usage.cached);
            return Err(BudgetError::Spec { message });
        }
        let Some(hold) = self.hold.as_ref().filter(|hold| hold.is_own()) else { return Ok(false) };
        let mut reported = [None; crate::budget::unit::UNITS];
        let [tokens, nano_usd, ..] = &mut reported;
        *tokens = Some(prompt.saturating_add(completion));
        if self.priced {
            let mut parts = vec![
                ("prompt", count(prompt.saturating_sub(usage.cached))),
                ("cached", count(usage.cached)),
                ("completion", count(completion)),
            ];
            parts.extend(usage.others.iter().map(|(name, tokens)| (*name, count(*tokens))));
            let whole = reserved.get(Unit::NanoUsd).max(charged.get(Unit::NanoUsd));
            let prices = &hold.ledger().spec().prices;
            let known = |part| match prices.cost(&self.model, &[part]) {
                Ok(cost) => cost,
                // Beyond what can be written down: as much as can.
                Err(Unpriced::TooLarge { .. }) => AMOUNT_MAX,
                Err(_) => 0,
            };
            let floor = || parts.iter().fold(0_i64, |sum, part| sum.saturating_add(known(*part)));
            let cost = prices.cost(&self.model, &parts).unwrap_or_else(|_| floor().max(whole).min(AMOUNT_MAX));
            *nano_usd = Some(cost);
        }
        hold.ledger().settle(hold.id, &reported)
    }

    /// Ends a call of which nobody says what was used, because it was broken off or its usage was lost: if it streamed
    /// what was charged counts, the prompt included, else all that is held. False if it has ended before.
    pub fn end(&self) -> bool {
        let Some(hold) = self.hold.as_ref().filter(|hold| hold.is_own()) else { return false };
        let Progress { charged, streamed, .. } = *self.progress();
        if !streamed || charged.get(Unit::Tokens) == 0 {
            return hold.end_unreported();
        }
        let mut reported = [None; crate::budget::unit::UNITS];
        let [tokens, nano_usd, ..] = &mut reported;
        *tokens = Some(charged.get(Unit::Tokens));
        *nano_usd = self.priced.then(|| charged.get(Unit::NanoUsd));
        // What was charged can be an amount, or it would not have been taken.
        hold.ledger().settle(hold.id, &reported).unwrap_or_else(|_| hold.end_unreported())
    }
}

fn covers(held: &Amounts, charged: &Amounts) -> bool {
    [Unit::Tokens, Unit::NanoUsd].into_iter().all(|unit| charged.get(unit) <= held.get(unit))
}

/// Says that the call has begun, which charges its prompt; an ended hold is a denial.
pub(super) fn dispatch(hold: &Handle, prompt: &Amounts) -> Result<(), Box<Denial>> {
    if hold.ledger().dispatch(hold.id, prompt) == Charge::Ended && !hold.shadow {
        let message = "the hold's deadline passed before the call began; ask again".to_owned();
        let path = hold.ledger().hold(hold.id).map(|hold| hold.path).unwrap_or_default();
        hold.release();
        return Err(Box::new(Denial::of(DenialKind::Expired, &path, message)));
    }
    Ok(())
}
