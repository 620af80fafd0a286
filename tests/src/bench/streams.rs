//! Execs at once, and how much goes through an exec and an attach.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::time::timeout;

use super::{Bench, Section, Unit, timed};
use crate::cri::{Container, ContainerSpec};
use crate::stream::{Session, Wish};

/// How much goes through.
const SIZE: usize = 16 << 20;
const AT_ONCE: usize = 20;

impl Bench {
    pub(super) async fn streams(&mut self) -> Result<()> {
        let rounds = self.plan.part(10);
        let mut pods = Vec::new();
        for handler in self.handlers() {
            let pod = self.pod(handler).run().await?;
            let mut spec = ContainerSpec::script("main", &script());
            spec.config.stdin = true;
            let container = Arc::new(pod.start(&spec).await?);
            let session = greeted(&container).await?;
            pods.push((handler, pod, container, session));
        }
        let name = format!("ExecSync, {AT_ONCE} at once");
        for _ in 0..rounds {
            for (handler, _, container, session) in &mut pods {
                let ((), ms) = timed(execs(container, AT_ONCE)).await?;
                self.table.add(Section::Streams, &name, Unit::Ms, *handler, ms);
                let ((), ms) = timed(taken(session, b"out\n", SIZE)).await?;
                self.table.add(Section::Streams, "attach: 16 MiB out", Unit::Ms, *handler, ms);
                let ((), ms) = timed(given(session)).await?;
                self.table.add(Section::Streams, "attach: 16 MiB in", Unit::Ms, *handler, ms);
                let ((), ms) = timed(by_exec(container)).await?;
                self.table.add(Section::Streams, "exec: 16 MiB out", Unit::Ms, *handler, ms);
            }
        }
        for (_, pod, _, session) in pods {
            session.close().await;
            pod.end().await?;
        }
        for ms in self.floor.run(move |one| one.execs(rounds, AT_ONCE)).await? {
            self.table.floor(Section::Streams, &name, Unit::Ms, ms);
        }
        Ok(())
    }
}

/// Says so many zeros, or swallows as many bytes and says that it has, or repeats a word.
fn script() -> String {
    let (zeros, swallow) = (zeros(), format!("head -c {SIZE} >/dev/null && echo swallowed"));
    format!(
        "while read word; do case $word in out) {zeros};; in) {swallow};; *) echo $word;; esac; done"
    )
}

fn zeros() -> String {
    format!("dd if=/dev/zero bs=65536 count={} 2>/dev/null", SIZE >> 16)
}

/// An attach that is through: containerd begins with the input before it passes on output.
async fn greeted(container: &Container) -> Result<Session> {
    let mut session = container.open_attach(Wish { tty: false, stdin: true }).await?;
    for _ in 0..10 {
        session.send(b"hello\n").await?;
        if let Ok(heard) = timeout(Duration::from_secs(1), session.expect("hello")).await {
            heard?;
            // What answers an earlier greeting comes before it, and must not count later.
            session.send(b"ready\n").await?;
            session.expect("ready\n").await?;
            return Ok(session);
        }
    }
    bail!("the attach brings no output")
}

/// Sends a word and reads so many bytes.
async fn taken(session: &mut Session, word: &[u8], size: usize) -> Result<()> {
    session.stdout.clear();
    session.send(word).await?;
    session.receive(size).await?;
    ensure!(session.stdout.len() == size, "{} bytes instead of {size}", session.stdout.len());
    Ok(())
}

async fn given(session: &mut Session) -> Result<()> {
    session.stdout.clear();
    session.send(b"in\n").await?;
    let piece = vec![0; 32 << 10];
    for _ in 0..SIZE / piece.len() {
        session.send(&piece).await?;
    }
    session.expect("swallowed\n").await
}

async fn by_exec(container: &Container) -> Result<()> {
    let zeros = zeros();
    let mut session = container.open_exec(&["/bin/sh", "-c", &zeros], Wish::default()).await?;
    session.to_end().await?;
    ensure!(session.stdout.len() == SIZE, "{} bytes by exec", session.stdout.len());
    Ok(())
}

/// So many execs at once.
///
/// # Errors
/// One of them does not succeed.
pub async fn execs(container: &Arc<Container>, count: usize) -> Result<()> {
    let exec = |_| {
        let container = Arc::clone(container);
        tokio::spawn(async move { container.exec(&["/bin/true"]).await })
    };
    let all: Vec<_> = (0..count).map(exec).collect();
    for one in all {
        let ran = one.await.context("an exec's task")??;
        ensure!(ran.code == 0, "true: {ran:?}");
    }
    Ok(())
}
