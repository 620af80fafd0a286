//! The journal of a teardown, as `journal.json` in a sandbox's state folder.

use std::time::Duration;

use mooring::{
    resources::Resource,
    teardown::{
        Journaled,
        journal::{JournalError, Left, open, read},
    },
};

use crate::scratch;

pub fn journal(input: &[u8]) {
    let folder = scratch::folder();
    let file = folder.join("journal.json");
    scratch::write(&file, input);
    let journal = match read::<Resource>(&folder) {
        Ok(journal) => journal.expect("it is there"),
        Err(error) => {
            let by_content =
                matches!(error, JournalError::Foreign { .. } | JournalError::Newer { .. });
            assert!(by_content, "{error}");
            assert!(error.to_string().contains("journal.json"), "{error}");
            assert!(open::<Resource>(&folder, Duration::ZERO).is_err());
            return;
        }
    };
    for entry in &journal.entries {
        // What it says of itself is what the next write says.
        assert!(!entry.resource.kind().is_empty() && !entry.resource.step().name().is_empty());
        let _ = entry.resource.outlives_reboot() | entry.resource.is_anothers_after_reboot();
    }
    scratch::write(&file, &serde_json::to_vec(&journal).expect("what was read can be written"));
    let again = read::<Resource>(&folder).expect("what was written can be read");
    assert_eq!(again.as_ref(), Some(&journal));

    // One step further, as a recovery goes: a released entry stays released, and nothing else changes.
    let Ok(Left::Journal(store)) = open::<Resource>(&folder, Duration::ZERO) else {
        panic!("what can be read can be opened");
    };
    assert_eq!(store.id(), &journal.about.id);
    if journal.entries.is_empty() {
        return;
    }
    store.released(0).expect("the folder can be written");
    let mut wanted = journal;
    if let Some(first) = wanted.entries.first_mut() {
        first.stage = mooring::teardown::journal::Stage::Released;
    }
    assert_eq!(read(&folder).expect("what was written can be read"), Some(wanted));
}
