//! Any call of CRI, its messages in protobuf's JSON. The messages are known from the very file that k8s-cri is made of.

use std::io::{Read, Write, stdout};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use mooring_e2e::node::channel_to;
use prost_reflect::bytes::{Buf, BufMut, Bytes};
use prost_reflect::prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, SerializeOptions};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};

const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.bin"));

pub fn run(socket: &Path, method: Option<&str>, request: &str) -> Result<ExitCode> {
    let pool = DescriptorPool::decode(DESCRIPTORS).context("CRI's descriptors")?;
    let methods = || {
        let services: Vec<_> = pool.services().collect();
        services.into_iter().flat_map(|one| one.methods().collect::<Vec<_>>())
    };
    let Some(name) = method else {
        for one in methods() {
            writeln!(stdout(), "{:<28}{}", one.name(), one.parent_service().name())?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let method = methods().find(|one| one.name() == name);
    let method = method.with_context(|| format!("CRI has no method {name:?}: see lab cri"))?;
    let mut text = request.to_owned();
    if text == "-" {
        text.clear();
        std::io::stdin().read_to_string(&mut text)?;
    }
    crate::block_on(call(socket, &method, &text))
}

async fn call(socket: &Path, method: &MethodDescriptor, text: &str) -> Result<ExitCode> {
    let mut json = serde_json::Deserializer::from_str(text);
    let request = DynamicMessage::deserialize(method.input(), &mut json)
        .with_context(|| format!("the request is no {}", method.input().name()))?;
    json.end().context("more than one request")?;
    let mut client = tonic::client::Grpc::new(channel_to(socket)?);
    client.ready().await.with_context(|| format!("connect to {}", socket.display()))?;
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let request = Request::new(Bytes::from(request.encode_to_vec()));
    let answers = client.server_streaming(request, path.parse()?, Raw).await;
    let mut answers = answers.map_err(|status| refusal(method, &status))?.into_inner();
    while let Some(answer) = answers.message().await.map_err(|status| refusal(method, &status))? {
        let answer = DynamicMessage::decode(method.output(), answer)?;
        let mut text = Vec::new();
        let mut out = serde_json::Serializer::pretty(&mut text);
        let options = SerializeOptions::new().stringify_64_bit_integers(false);
        answer.serialize_with_options(&mut out, &options)?;
        text.push(b'\n');
        stdout().write_all(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn refusal(method: &MethodDescriptor, status: &Status) -> anyhow::Error {
    anyhow!("{}: {:?}: {}", method.name(), status.code(), status.message())
}

/// Messages that were encoded elsewhere.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
