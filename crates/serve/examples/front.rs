//! A front for several servers of OpenAI's protocol: `cargo run -p breakers-serve --features upstreams
//! --example front -- PORT URL…`. The program does the same by `breakers serve --upstream URL …`.

use breakers_serve::upstreams::{Upstream, UpstreamNews, UpstreamsConfig};
use breakers_serve::{ServeConfig, Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut config = ServeConfig::default();
    config.address.set_port(arguments.next().ok_or("expected a port and addresses of servers")?.parse()?);
    let mut upstreams = UpstreamsConfig::new(arguments.map(Upstream::new));
    upstreams.observer = Some(std::sync::Arc::new(|news| match news {
        UpstreamNews::Start(all) => all.iter().for_each(|status| eprintln!("{status:?}")),
        news => eprintln!("{news:?}"),
    }));
    let ended =
        Server::new(config).with_upstreams(upstreams).run(|address| eprintln!("http://{address}/v1"))?;
    eprintln!("{} connections were cut off", ended.n_cut);
    Ok(())
}
