//! `breakers stage`: some of a model's layers, for a server in another process.

use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::process::ExitCode;

use breakers_cli::{CacheArgs, Error, ModelArgs, Result, cache_named};
use breakers_model::stages::{Stage, StageServer, Stream};

use crate::heap;

/// Flags of `breakers stage`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StageArgs {
    /// The model, instead of --model.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    name: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// The layers, counted from 0, the end not included: 12..24, or 12.. for all from there on.
    #[arg(long, value_name = "FROM..TO", value_parser = layers)]
    layers: (usize, Option<usize>),
    /// The address to listen on. Who can reach it can use the stage, and nothing is encrypted.
    #[arg(long, default_value = "127.0.0.1:8090", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Listen on an address that other machines can reach.
    #[arg(long)]
    trust_network: bool,
}

impl StageArgs {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        heap::tend();
        if !self.listen.ip().is_loopback() && !self.trust_network {
            let message = format!(
                "--listen {}: a stage has no keys and no encryption; --trust-network says that the network is \
                 trusted",
                self.listen
            );
            return Err(Error::Usage(message));
        }
        if self.model.matrices.is_some() {
            return Err(Error::Usage("--matrices: stages run the model's own file".to_owned()));
        }
        let mut model = self.model.clone();
        if let Some(name) = &self.name {
            model.model.clone_from(name);
        }
        let (from, to) = self.layers;
        let kind = cache_named(&self.cache.cache)?;
        let to = match to {
            Some(to) => to,
            // The first layer is loaded to know how many there are.
            None => {
                model.layers = Some(0..1);
                model.load()?.model.info().n_layers
            }
        };
        model.layers = Some(from..to);
        let loaded = model.load()?.model;
        let listener = TcpListener::bind(self.listen)?;
        let Range { start, end } = loaded.layers();
        eprintln!(
            "layers {start} to {} of {}, {} MB of weights; listening on {}",
            end - 1,
            loaded.info().name,
            loaded.weight_bytes() / 1_000_000,
            listener.local_addr()?,
        );
        for stream in listener.incoming() {
            let (stream, model, kind) = (stream?, loaded.clone(), kind.clone());
            let name = self.cache.cache.to_ascii_lowercase();
            std::thread::spawn(move || {
                let peer = stream.peer_addr().map_or_else(|_| "somebody".to_owned(), |peer| peer.to_string());
                eprintln!("{peer} is here");
                let device = model.device().clone();
                let mut server =
                    StageServer::new(model, name).with_cache(move |shape| kind.make(shape, &device));
                let served = Stream::tcp(stream)
                    .map_err(|error| error.to_string())
                    .and_then(|mut stream| server.serve(&mut stream).map_err(|error| error.to_string()));
                match served {
                    Ok(()) => eprintln!("{peer} has left"),
                    Err(error) => eprintln!("{peer}: {error}"),
                }
            });
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The stages at these addresses.
pub(crate) fn connect(addresses: &[String]) -> Result<Vec<Stage>> {
    let connect = |address: &String| {
        let refused = |error: &dyn std::fmt::Display| Error::Usage(format!("--stage {address}: {error}"));
        let stream = Stream::connect(address).map_err(|error| refused(&error))?;
        let stage = Stage::new(address, stream).map_err(|error| refused(&error))?;
        let Range { start, end } = stage.layers();
        eprintln!("{address} runs layers {start} to {}", end - 1);
        Ok(stage)
    };
    addresses.iter().map(connect).collect()
}

fn layers(text: &str) -> std::result::Result<(usize, Option<usize>), String> {
    let expected = || "expected FROM..TO, such as 12..24 or 12..".to_owned();
    let (from, to) = text.split_once("..").ok_or_else(expected)?;
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| expected());
    let to = if to.trim().is_empty() { None } else { Some(number(to)?) };
    Ok((number(from)?, to))
}
