//! What was measured: rows of samples, a column for each handler and one for the floor.

use std::collections::BTreeMap;

use super::Section;
use super::stats::{Ratio, median, ratio};
use crate::suite::Handler;

/// What a row's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Kibibytes.
    KiB,
    /// A plain number.
    Count,
}

impl Unit {
    /// As it is written.
    pub fn text(self) -> &'static str {
        match self {
            Self::Ms => "ms",
            Self::KiB => "KiB",
            Self::Count => "",
        }
    }
}

/// One thing that was measured.
#[derive(Clone, Debug)]
pub struct Row {
    /// Where it belongs.
    pub section: Section,
    /// What it is.
    pub name: String,
    /// What its numbers are.
    pub unit: Unit,
    /// The samples by handler, in the order of the rounds.
    pub samples: BTreeMap<&'static str, Vec<f64>>,
    /// The samples of the bare plugins, runtime calls and system calls.
    pub floor: Vec<f64>,
}

impl Row {
    /// A handler's samples.
    pub fn of(&self, handler: Handler) -> &[f64] {
        self.samples.get(handler.name()).map_or(&[], Vec::as_slice)
    }

    /// A handler beside another one.
    pub fn ratio(&self, of: Handler, to: Handler, seed: u64) -> Option<Ratio> {
        ratio(self.of(of), self.of(to), seed)
    }

    /// What a handler and containerd add to the floor.
    pub fn added(&self, handler: Handler) -> Option<f64> {
        Some(median(self.of(handler))? - median(&self.floor)?)
    }
}

/// All rows, in the order in which they were first measured.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The rows.
    pub rows: Vec<Row>,
}

impl Table {
    fn row(&mut self, section: Section, name: &str, unit: Unit) -> &mut Row {
        let known = self.rows.iter().position(|row| row.section == section && row.name == name);
        let at = known.unwrap_or_else(|| {
            let (name, samples) = (name.to_owned(), BTreeMap::new());
            self.rows.push(Row { section, name, unit, samples, floor: Vec::new() });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// A sample of a handler.
    pub fn add(&mut self, section: Section, name: &str, unit: Unit, of: Handler, value: f64) {
        self.row(section, name, unit).samples.entry(of.name()).or_default().push(value);
    }

    /// A sample of the floor.
    pub fn floor(&mut self, section: Section, name: &str, unit: Unit, value: f64) {
        self.row(section, name, unit).floor.push(value);
    }

    /// A row by its name.
    pub fn find(&self, section: Section, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.section == section && row.name == name)
    }

    /// The rows of a section.
    pub fn of(&self, section: Section) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.section == section)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stay_in_the_order_in_which_they_came_and_keep_their_samples() {
        let mut table = Table::default();
        for value in [3.0, 1.0, 2.0] {
            table.add(Section::Calls, "b", Unit::Ms, Handler::Mooring, value);
            table.add(Section::Calls, "a", Unit::Ms, Handler::Runc, value * 2.0);
            table.add(Section::Calls, "b", Unit::Ms, Handler::Runc, value * 4.0);
            table.floor(Section::Calls, "b", Unit::Ms, value / 2.0);
        }
        table.add(Section::Pods, "b", Unit::Ms, Handler::Runc, 1.0);
        let names: Vec<_> = table.of(Section::Calls).map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        let Some(row) = table.find(Section::Calls, "b") else { panic!("no row") };
        assert_eq!(row.of(Handler::Mooring), [3.0, 1.0, 2.0]);
        assert_eq!(row.ratio(Handler::Mooring, Handler::Runc, 1).map(|one| one.value), Some(0.25));
        assert_eq!(row.added(Handler::Mooring), Some(1.0));
        let Some(alone) = table.find(Section::Calls, "a") else { panic!("no row") };
        assert_eq!(alone.ratio(Handler::Mooring, Handler::Runc, 1), None);
        assert_eq!(alone.added(Handler::Runc), None);
    }
}
