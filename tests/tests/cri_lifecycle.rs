//! A pod's life over CRI.

use anyhow::Result;
use k8s_cri::v1 as cri;
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::node::Settings;
use mooring_e2e::suite;
use mooring_e2e::suite::Case;

async fn an_empty_pod_runs_stops_and_is_removed(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    assert!(pod.is_ready().await?);
    assert!(pod.is_listed().await?);
    assert!(pod.address().await?.starts_with("10.88."));
    pod.stop().await?;
    assert!(!pod.is_ready().await?);
    pod.remove().await?;
    assert!(!pod.is_listed().await?);
    Ok(())
}

async fn a_container_lives_from_create_to_remove(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.create(&ContainerSpec::idle("main")).await?;
    assert_eq!(container.status().await?.state(), cri::ContainerState::ContainerCreated);
    container.start().await?;
    assert_eq!(container.status().await?.state(), cri::ContainerState::ContainerRunning);
    assert_eq!(container.shell("echo hello").await?, "hello");
    container.stop(0).await?;
    let status = container.exited().await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    container.remove().await?;
    pod.end().await
}

suite!(Settings::default();
    too: builtin;
    both: an_empty_pod_runs_stops_and_is_removed, a_container_lives_from_create_to_remove;
    mooring: );
