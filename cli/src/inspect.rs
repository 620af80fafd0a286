//! `mooring inspect`: one sandbox, from its shim, or from the disk where that does not answer.

use std::{io::Write, time::Duration};

use anyhow::Result;
use mooring::{
    inspect::{AskError, Shim, State as ShimState, WatchResponse},
    sandbox::survey::Found,
};
use serde_json::json;

use crate::{
    account::{Account, Step},
    args::{InspectArgs, Output},
    exit::Exit,
    node, steps,
};

mod sheet;

/// How long a shim may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

pub fn run(args: &InspectArgs, out: &mut dyn Write) -> Result<Exit> {
    node::need_root("inspect")?;
    let looked = node::look(&args.roots.state_root)?;
    let found = looked.sandbox(args.namespace.as_deref(), &args.id)?;
    let runtime = node::runtime()?;
    if args.watch {
        return runtime.block_on(follow(found, args.output, out));
    }
    let account = runtime.block_on(ask(found));
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&account)?)?,
        Output::Table => write!(out, "{}", sheet::of(&account))?,
    }
    Ok(exit(&account))
}

/// What its shim says, or the disk.
async fn ask(found: &Found) -> Account {
    let Some(record) = &found.shim else { return Account::from_disk(found, None) };
    let said = async { Shim::find(record).await?.get(PATIENCE).await };
    match said.await {
        Ok(said) => Account::from_shim(found, said),
        Err(AskError::Gone) => Account::from_disk(found, None),
        Err(error) => Account::from_disk(found, Some(error.to_string())),
    }
}

/// Whether something wants a look: a shim that does not answer or is gone, a step that failed.
fn exit(account: &Account) -> Exit {
    use crate::ls::State;
    let failed = |step: &Step| step.outcome == "failed";
    let left = matches!(account.state, State::Left | State::Unsure);
    if left || account.complaint.is_some() || account.teardown.steps.iter().any(failed) {
        Exit::Findings
    } else {
        Exit::Clean
    }
}

/// Tells each step as it begins and ends, until the sandbox is stopped or its shim has ended.
async fn follow(found: &Found, form: Output, out: &mut dyn Write) -> Result<Exit> {
    let Some(record) = &found.shim else { anyhow::bail!("{}: it has no shim to follow", found.id) };
    let mut steps = Shim::find(record).await?.watch().await?;
    let mut last = String::new();
    while let Some(news) = steps.next().await? {
        let stopped = news.state.enum_value() == Ok(ShimState::STOPPED);
        if let Some(line) = told(news, form, &mut last)? {
            writeln!(out, "{line}")?;
            out.flush()?;
        }
        if stopped {
            break;
        }
    }
    Ok(Exit::Clean)
}

/// What to write of it; nothing where it is what was written last.
fn told(news: WatchResponse, form: Output, last: &mut String) -> Result<Option<String>> {
    let state = crate::ls::State::said(news.state.enum_value_or_default());
    let step = news.step.into_option().map(Step::said);
    // A step under way comes again and again: worth a line when it begins, and when it waits for something else.
    let key =
        format!("{state:?} {:?}", step.as_ref().map(|it| (&it.name, it.outcome, &it.waits_for)));
    if key == *last {
        return Ok(None);
    }
    *last = key;
    Ok(Some(match (form, &step) {
        (Output::Json, _) => serde_json::to_string(&json!({"state": state, "step": step}))?,
        (Output::Table, Some(step)) => steps::line(step),
        (Output::Table, None) => {
            serde_json::to_value(state)?.as_str().unwrap_or_default().to_owned()
        }
    }))
}
