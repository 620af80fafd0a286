//! State folders whose shim is gone, and those that are not understood.

use mooring::sandbox::survey::{Found, Hands};

use super::Look;
use crate::{
    doctor::{
        finding::{Finding, Sure},
        world::World,
    },
    holdings,
};

pub struct Journals;

impl Look for Journals {
    fn name(&self) -> &'static str {
        "journal"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        world.found.iter().filter_map(|found| self.judge(found, world)).collect()
    }
}

impl Journals {
    fn judge(&self, found: &Found, world: &World) -> Option<Finding> {
        let finding = Finding::new(self.name(), found.folder.display().to_string())
            .of(format!("{}/{}", found.namespace, found.id))
            .since(found.written, world.now);
        match &found.hands {
            Hands::Shim | Hands::Locked => None,
            Hands::Unsure(doubts) => Some(finding.because(Sure::Unsure, doubts.join("; "))),
            Hands::Nobody => {
                let held: Vec<&str> = holdings::of(found).iter().map(|one| one.step).collect();
                let held = match held.as_slice() {
                    [] => "it holds nothing any more".to_owned(),
                    steps => format!("owed steps: {}", distinct(steps).join(", ")),
                };
                let why = format!("its shim is gone, and nobody works on it; {held}");
                Some(finding.because(Sure::Certain, why).freed_by("mooring gc --yes"))
            }
        }
    }
}

fn distinct(steps: &[&'static str]) -> Vec<&'static str> {
    let mut all: Vec<&str> = Vec::new();
    for step in steps {
        if !all.contains(step) {
            all.push(step);
        }
    }
    all
}
