//! `CreateContainer`: what each plugin asks for is done to the specification before the next one is asked.

use protobuf::Message;
use serde_json::Value;

use super::api::{
    AboutRequest, ContainerAdjustment, CreateContainerResponse, OwningPlugins, PluginInstance,
    ValidateContainerAdjustmentRequest, ValidateContainerAdjustmentResponse,
};
use super::{
    Event, adjust,
    announcer::Worker,
    claims::Claims,
    container,
    error::{Error, Failure},
};

const CREATE: &str = "CreateContainer";
const VALIDATE: &str = "ValidateContainerAdjustment";

impl Worker {
    /// Adjusts `spec` as the plugins ask, and has those judge it that want to.
    pub(super) async fn create(&mut self, id: &str, mut spec: Value) -> Result<Value, Error> {
        let pristine = container::message(id, &self.pod.id, &spec);
        self.containers.insert(id.to_owned(), pristine.clone());
        let mut claims = Claims::default();
        // One message after another is, in protobuf, the two merged.
        let mut merged = Vec::new();
        let mut asked = Vec::new();
        let mut index = 0;
        while let Some(plugin) = self.plugins.get(index) {
            index += 1;
            if !plugin.wants(Event::CreateContainer) {
                continue;
            }
            let request = AboutRequest {
                pod: Some(self.pod.clone()).into(),
                container: Some(container::message(id, &self.pod.id, &spec)).into(),
                ..AboutRequest::default()
            };
            let name = plugin.name();
            let instance = PluginInstance {
                name: plugin.base.clone(),
                index: plugin.index.clone(),
                ..PluginInstance::default()
            };
            let answer = match plugin.call::<CreateContainerResponse>(CREATE, &request).await {
                Ok(answer) => answer,
                Err(Failure::Unknown) => continue,
                Err(failure) if failure.is_the_end() => {
                    index -= 1;
                    self.cut(index, CREATE, &failure);
                    continue;
                }
                Err(failure) => return Err(Error { plugin: name, method: CREATE, failure }),
            };
            asked.push(instance);
            let failed = |failure| Error { plugin: name.clone(), method: CREATE, failure };
            others(&answer, &name).map_err(failed)?;
            if let Some(adjust) = answer.adjust.as_ref() {
                adjust::apply(&mut spec, adjust, &name, &mut claims)
                    .map_err(|refused| failed(refused.into()))?;
                // What was read can be written.
                merged.extend(adjust.write_to_bytes().unwrap_or_default());
            }
        }
        let owners = OwningPlugins {
            owners: [(id.to_owned(), claims.owners())].into(),
            ..OwningPlugins::default()
        };
        let adjusted = ContainerAdjustment::parse_from_bytes(&merged).unwrap_or_default();
        self.containers.insert(id.to_owned(), container::message(id, &self.pod.id, &spec));
        let request = ValidateContainerAdjustmentRequest {
            pod: Some(self.pod.clone()).into(),
            container: Some(pristine).into(),
            adjust: Some(adjusted).into(),
            owners: Some(owners).into(),
            plugins: asked,
            ..ValidateContainerAdjustmentRequest::default()
        };
        self.validate(&request).await?;
        Ok(spec)
    }

    /// Asks those that judge. One that cannot say that it is right has not said so: the container is refused.
    async fn validate(
        &mut self,
        request: &ValidateContainerAdjustmentRequest,
    ) -> Result<(), Error> {
        let mut index = 0;
        while let Some(plugin) = self.plugins.get(index) {
            if !plugin.wants(Event::ValidateContainerAdjustment) {
                index += 1;
                continue;
            }
            let name = plugin.name();
            let judged =
                plugin.call::<ValidateContainerAdjustmentResponse>(VALIDATE, request).await;
            let failure = match judged {
                Ok(judgement) if judgement.reject => Failure::Says(judgement.reason),
                // One that asked for all events, and does not judge.
                Ok(_) | Err(Failure::Unknown) => {
                    index += 1;
                    continue;
                }
                Err(failure) => {
                    if failure.is_the_end() {
                        self.cut(index, VALIDATE, &failure);
                    }
                    failure
                }
            };
            return Err(Error { plugin: name, method: VALIDATE, failure });
        }
        Ok(())
    }
}

/// What is asked for about other containers is not done.
fn others(answer: &CreateContainerResponse, name: &str) -> Result<(), Failure> {
    if let Some(evict) = answer.evict.first() {
        return Err(Failure::Others(format!("the eviction of container {:?}", evict.container_id)));
    }
    for update in &answer.update {
        let asked = format!("an update of container {:?}", update.container_id);
        if !update.ignore_failure {
            return Err(Failure::Others(asked));
        }
        log::warn!("NRI plugin {name:?}: {}", Failure::Others(asked));
    }
    Ok(())
}
