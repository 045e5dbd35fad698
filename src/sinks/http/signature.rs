//! Ids and signatures of requests, as the Standard Webhooks specification has them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::sinks::SinkError;
use crate::sinks::web::EncodedRow;

/// Begins a secret whose bytes are in Base64.
const PREFIX: &str = "whsec_";
/// Secrets of one sink: the new one and old ones, while receivers change.
const MAX_SECRETS: usize = 4;

/// A secret that signs requests.
pub struct SigningKey(Hmac<Sha256>);

/// What a sink has of one reset or none, for ids.
#[derive(Debug, Clone)]
pub struct Origin {
    pub sink: String,
    pub log: u64,
    /// How often the sink has been reset.
    pub epoch: u64,
}

impl SigningKey {
    /// The keys of some secrets: `whsec_` and Base64, or any other text.
    pub fn parse(secrets: &[String]) -> Result<Vec<Self>, SinkError> {
        let invalid = |problem: &str| {
            SinkError::Halted(format!(
                "secret_file: {problem}; repair it, then `weir sinks resume NAME`"
            ))
        };
        if secrets.len() > MAX_SECRETS {
            return Err(invalid(&format!("it has more than {MAX_SECRETS} lines")));
        }
        let key = |secret: &String| {
            let bytes = match secret.strip_prefix(PREFIX) {
                None => secret.clone().into_bytes(),
                Some(text) => STANDARD
                    .decode(text)
                    .map_err(|_| invalid("what follows `whsec_` is not Base64"))?,
            };
            let key = Hmac::new_from_slice(&bytes).ok();
            let key = key.filter(|_| !bytes.is_empty());
            key.map(Self).ok_or_else(|| invalid("a secret is empty"))
        };
        secrets.iter().map(key).collect()
    }

    fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let mut mac = self.0.clone();
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// The signatures of a request, for `webhook-signature`.
pub fn signatures(keys: &[SigningKey], id: &str, timestamp: i64, body: &[u8]) -> String {
    let signatures = keys.iter().map(|key| key.sign(id, timestamp, body));
    signatures.collect::<Vec<_>>().join(" ")
}

/// The id of a request: the same whenever the same rows are sent again, by this process or a later
/// one. First and last row alone do not suffice: of an entity table, a later attempt may have
/// another row between them.
pub fn delivery_id(origin: &Origin, rows: &[EncodedRow], body: &[u8]) -> String {
    let place = |row: Option<&EncodedRow>| {
        row.map_or_else(String::new, |row| format!("{}_{}", row.lsn, row.ordinal))
    };
    let digest: String = Sha256::digest(body)[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        "{}-{:x}-{}-{}-{}-{digest}",
        origin.sink,
        origin.log,
        origin.epoch,
        place(rows.first()),
        place(rows.last()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(secrets: &[&str]) -> Result<Vec<SigningKey>, SinkError> {
        SigningKey::parse(&secrets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_request_is_signed_as_the_specification_has_it() {
        // The example of the reference implementations.
        let keys = keys(&["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]).expect("a key");
        let signed = signatures(
            &keys,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn several_secrets_give_several_signatures_and_wrong_ones_are_refused() {
        let two = keys(&["new", "old"]).expect("keys");
        let one = keys(&["old"]).expect("a key");
        let both = signatures(&two, "a", 1, b"{}");
        let parts: Vec<&str> = both.split(' ').collect();
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[1], signatures(&one, "a", 1, b"{}"));
        let error = |secrets: &[&str]| match keys(secrets) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        };
        insta::assert_snapshot!([
            error(&["whsec_%"]),
            error(&["whsec_"]),
            error(&["a", "b", "c", "d", "e"]),
        ]
        .join("\n"), @r#"
        secret_file: what follows `whsec_` is not Base64; repair it, then `weir sinks resume NAME`
        secret_file: a secret is empty; repair it, then `weir sinks resume NAME`
        secret_file: it has more than 4 lines; repair it, then `weir sinks resume NAME`
        "#);
    }

    #[test]
    fn an_id_names_sink_log_epoch_and_rows() {
        let row = |lsn, ordinal| EncodedRow {
            lsn,
            ordinal,
            json: Vec::new(),
            extra: (),
        };
        let origin = Origin {
            sink: "hook".into(),
            log: 0xabc,
            epoch: 2,
        };
        let id = delivery_id(&origin, &[row(7, 0), row(9, 1)], b"{}");
        assert_eq!(id, "hook-abc-2-7_0-9_1-44136fa355b3678a");
    }
}
