//! Names of hosts as public addresses: each connection is made to an address that was checked, so
//! that a name which changes between two look-ups does not help.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::config::sinks::address::is_public;

/// A name has no public address.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} is not on the public internet; if it is the right host, add `allow_private = true` to \
     the sink, then restart weir"
)]
pub struct NotPublic(String);

/// Looks names up, and leaves out addresses that are not public.
pub struct PublicAddresses;

impl Resolve for PublicAddresses {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<_> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(NotPublic(name).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}
