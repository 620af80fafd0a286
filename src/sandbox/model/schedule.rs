//! Who is next: every order within bounds, or one that is given.

use std::collections::BTreeMap;

use crate::interleave::Next;

/// Decides at every point who goes on, and who dies.
pub(super) trait Schedule {
    /// `last` had the last turn; who is `ready` can have the next, `last` perhaps among them.
    fn next(&mut self, last: Option<usize>, ready: &[usize]) -> Next;
}

/// How much an order may differ from one actor after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// How often an actor is interrupted that could go on.
    pub(super) switches: usize,
    pub(super) deaths: usize,
    /// In how many of its first turns that can be, after the first actor's.
    pub(super) early: usize,
}

/// A share of the turns: one in `of`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) of: usize,
    pub(super) at: usize,
}

/// One order after the other, until all within the bounds have been.
pub(super) struct Exhaustive {
    bounds: Bounds,
    share: Share,
    left: Bounds,
    /// At each decision which of how many was taken.
    taken: Vec<(usize, usize)>,
    at: usize,
    /// How many turns each actor has had.
    turns: BTreeMap<usize, usize>,
}

impl Exhaustive {
    /// Orders that are interrupted after turns of that share only.
    pub(super) fn new(bounds: Bounds, share: Share) -> Self {
        Self { bounds, share, left: bounds, taken: Vec::new(), at: 0, turns: BTreeMap::new() }
    }

    fn may_be_left(&self, actor: usize, turns: usize) -> bool {
        let early = turns <= self.bounds.early && (actor > 0 || self.bounds.early == usize::MAX);
        early && self.at % self.share.of == self.share.at
    }

    /// Turns to the next order; `false` when there is none.
    pub(super) fn advance(&mut self) -> bool {
        (self.left, self.at) = (self.bounds, 0);
        self.turns.clear();
        while let Some((taken, of)) = self.taken.pop() {
            if taken + 1 < of {
                self.taken.push((taken + 1, of));
                return true;
            }
        }
        false
    }
}

impl Schedule for Exhaustive {
    fn next(&mut self, last: Option<usize>, ready: &[usize]) -> Next {
        let turns = last.map_or(0, |last| {
            let turns = self.turns.entry(last).or_default();
            *turns += 1;
            *turns
        });
        let last = last.filter(|last| ready.contains(last));
        // Whoever goes on costs nothing; so does anybody where nobody can.
        let mut options: Vec<(Next, Bounds)> = match last {
            Some(last) => vec![(Next::Go(last), self.left)],
            None => ready.iter().map(|actor| (Next::Go(*actor), self.left)).collect(),
        };
        if let Some(last) = last.filter(|last| self.may_be_left(*last, turns)) {
            if let Some(switches) = self.left.switches.checked_sub(1) {
                let others = ready.iter().filter(|actor| **actor != last);
                let left = Bounds { switches, ..self.left };
                options.extend(others.map(|actor| (Next::Go(*actor), left)));
            }
            if let Some(deaths) = self.left.deaths.checked_sub(1) {
                options.push((Next::Kill(last), Bounds { deaths, ..self.left }));
            }
        }
        if self.at == self.taken.len() {
            self.taken.push((0, options.len()));
        }
        let (taken, of) = self.taken[self.at];
        assert_eq!(of, options.len(), "the same order went another way");
        self.at += 1;
        let (next, left) = options[taken];
        self.left = left;
        next
    }
}

/// Something happens once an actor has had so many turns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Switch {
    pub(super) actor: usize,
    pub(super) after: usize,
    /// Who of the ready ones is next.
    pub(super) to: usize,
    /// Whether the one that is left dies.
    pub(super) dies: bool,
}

/// As the switches say, and else one actor after the other.
pub(super) struct Given {
    switches: Vec<Switch>,
    turns: BTreeMap<usize, usize>,
}

impl Given {
    pub(super) fn new(switches: Vec<Switch>) -> Self {
        Self { switches, turns: BTreeMap::new() }
    }
}

impl Schedule for Given {
    fn next(&mut self, last: Option<usize>, ready: &[usize]) -> Next {
        let turns = last.map_or(0, |last| {
            let turns = self.turns.entry(last).or_default();
            *turns += 1;
            *turns
        });
        // Whoever has to wait lets the others go on in turn, so that none is left behind for ever.
        let after =
            last.map_or(0, |last| ready.iter().position(|actor| *actor > last).unwrap_or(0));
        let Some(last) = last.filter(|last| ready.contains(last)) else {
            return Next::Go(ready[after]);
        };
        let due = |switch: &Switch| switch.actor == last && switch.after <= turns;
        let Some(due) = self.switches.iter().position(due) else { return Next::Go(last) };
        let switch = self.switches.remove(due);
        if switch.dies { Next::Kill(last) } else { Next::Go(ready[switch.to % ready.len()]) }
    }
}
