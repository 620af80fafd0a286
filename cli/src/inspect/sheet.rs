//! A sandbox on one sheet.

use std::fmt::Write;

use comfy_table::Table;
use console::style;

use crate::{
    account::{Account, Shim},
    holdings, steps,
};

/// All of it, for people.
pub fn of(account: &Account) -> String {
    let mut sheet = Sheet(String::new());
    sheet.head(account);
    sheet.list(
        "containers",
        &["ID", "STATE", "PID", "EXIT"],
        account.containers.iter().map(|one| {
            vec![one.id.clone(), one.state.clone(), text(one.pid), text(one.exit_status)]
        }),
    );
    let teardown = &account.teardown;
    let all = teardown.steps.iter().chain(&teardown.current);
    let mut lines = all.map(steps::line).peekable();
    if lines.peek().is_some() {
        let runs = teardown.runs.filter(|runs| *runs > 1);
        let runs = runs.map(|runs| format!(" ({runs} times begun)")).unwrap_or_default();
        sheet.title(&format!("teardown{runs}"));
        for line in lines {
            sheet.line(&line);
        }
    }
    sheet.list(
        "holds",
        &["STEP", "WHAT ITS RELEASE DOES"],
        account.holds.iter().map(|one| vec![one.step.clone(), one.what.clone()]),
    );
    let operations = &account.operations;
    sheet.list(
        "measured",
        &["OPERATION", "OF", "COUNT", "ERRORS", "MEAN", "LONGEST"],
        operations.iter().map(|one| {
            #[expect(clippy::cast_precision_loss, reason = "a mean to be shown")]
            let mean = one.total_ms / one.count.max(1) as f64;
            let subject = one.subject.clone().unwrap_or_else(|| "-".into());
            let (count, errors) = (one.count.to_string(), one.errors.to_string());
            let (mean, longest) = (steps::length(mean), steps::length(one.longest_ms));
            vec![one.name.clone(), subject, count, errors, mean, longest]
        }),
    );
    sheet.0
}

fn text<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

struct Sheet(String);

impl Sheet {
    fn head(&mut self, account: &Account) {
        self.field("sandbox", &format!("{}/{}", account.namespace, account.id));
        if let Some(pod) = &account.pod {
            self.field("pod", &format!("{}/{}, uid {}", pod.namespace, pod.name, pod.uid));
        }
        let state = holdings::tag(&account.state).unwrap_or_default();
        self.field("state", &state);
        let told = if account.told_by_shim { "its shim" } else { "journal and records" };
        self.field("told by", told);
        for complaint in account.complaint.iter().chain(&account.doubts) {
            self.field("but", &style(complaint).red().to_string());
        }
        let runtime = account.runtime.as_ref().map(|runtime| format!(", with {runtime}"));
        if let Some(handler) = &account.handler {
            self.field("handler", &format!("{handler}{}", runtime.unwrap_or_default()));
        }
        if let Some(shim) = &account.shim {
            self.field("shim", &process(shim));
        }
        if let Some(keeper) = &account.keeper {
            let pid = keeper.pid.map(|pid| format!(" {pid}")).unwrap_or_default();
            self.field("keeper", &format!("{}{pid}", keeper.kind));
        }
        for (name, value) in [
            ("created", &account.created_at),
            ("exited", &account.exited_at),
            ("bundle", &account.bundle),
        ] {
            if let Some(value) = value {
                self.field(name, value);
            }
        }
        if let Some(network) = &account.network {
            let netns = network.netns.as_ref().map(|path| format!(", {path}")).unwrap_or_default();
            self.field("network", &format!("{}'s{netns}", network.owner));
            for one in &network.attachments {
                let addresses = one.addresses.join(", ");
                let line =
                    format!("{} in {:?}: {} {addresses}", one.interface, one.network, one.outcome);
                self.field("", line.trim_end());
            }
        }
    }

    fn field(&mut self, name: &str, value: &str) {
        self.line(format!("{name:<11} {value}").trim_end());
    }

    fn title(&mut self, title: &str) {
        self.line("");
        self.line(title);
    }

    fn line(&mut self, line: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{line}");
    }

    /// A table under a title; nothing where it is empty.
    fn list(&mut self, title: &str, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(header.to_vec());
        let before = table.row_count();
        for row in rows {
            table.add_row(row);
        }
        if table.row_count() == before {
            return;
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.title(title);
        self.line(&table.trim_fmt());
    }
}

fn process(shim: &Shim) -> String {
    if !shim.alive {
        return format!("{}, which is gone", shim.pid);
    }
    let mut parts = vec![shim.pid.to_string()];
    parts.extend(shim.version.as_ref().map(|version| format!("release {version}")));
    parts.extend(shim.pss_bytes.map(|bytes| format!("{} KiB PSS", bytes >> 10)));
    parts.extend(shim.descriptors.map(|count| format!("{count} descriptors")));
    parts.extend(shim.threads.map(|count| format!("{count} threads")));
    parts.join(", ")
}

#[cfg(test)]
mod tests;
