//! Fifos of clients such as ctr: folders with `ID-stdin`, `ID-stdout`, `ID-stderr`.

use std::fs;

use super::Look;
use crate::doctor::{
    finding::{Finding, word},
    world::{Owner, World, bundles::folders},
};

pub struct Fifos;

impl Look for Fifos {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        let judged = folders(&world.places.fifos).into_iter().filter_map(|folder| {
            let entries = fs::read_dir(&folder).ok()?.flatten();
            let mut ids = entries.filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let streams = ["-stdin", "-stdout", "-stderr"];
                streams.iter().find_map(|end| name.strip_suffix(end).map(str::to_owned))
            });
            let id = ids.next()?;
            let finding = Finding::new(self.name(), folder.display().to_string());
            let modified = fs::metadata(&folder).and_then(|about| about.modified()).ok();
            let finding = finding.since(modified, world.now);
            let owner = world.owner_of(&id);
            if matches!(owner, Owner::Lives | Owner::Doubtful | Owner::Recorded)
                || world.has_open(&folder)
            {
                return None;
            }
            let (sure, why) = world.nobodys();
            let why = format!("nobody has it open; {why}");
            let command = format!("rm -r {}", word(&folder));
            Some(finding.of(world.name_of(&id)).because(sure, why).freed_by(command))
        });
        judged.collect()
    }
}
