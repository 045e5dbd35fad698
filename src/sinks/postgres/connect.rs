//! The connection to the database: TLS, password, and time-outs of everything.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::SinkError;
use super::failure::Failure;
use crate::config::sinks::PostgresSink;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of one request to the server, which gives up by itself after 25 seconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(28);
/// Of a commit, at which the server checks the foreign keys of all its rows: that takes minutes
/// after a long backlog, and the server's time-out of statements does not end it.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// After this time without an answer the other side counts as gone.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_PASSWORD_BYTES: u64 = 4 << 10;
/// The server finds out within half a minute that this process is gone, and frees its lock.
const SETTINGS: &str = "
set statement_timeout = '25s';
set lock_timeout = '20s';
set idle_in_transaction_session_timeout = '10min';
set client_min_messages = warning;
set tcp_keepalives_idle = 10;
set tcp_keepalives_interval = 5;
set tcp_keepalives_count = 3";

/// Files in which systems have the certificates that they trust.
const SYSTEM_CERTIFICATES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A connection, and the task that serves it.
pub struct Connection {
    pub client: Client,
    task: JoinHandle<()>,
}

impl Connection {
    /// Connects as a sink is configured.
    pub async fn open(def: &PostgresSink, name: &str) -> Result<Self, Failure> {
        let config = config(def, name)?;
        let tls = MakeRustlsConnect::new(tls(&config, def.ca_file.as_deref())?);
        let connected = tokio::time::timeout(REQUEST_TIMEOUT, config.connect(tls)).await;
        let (client, connection) = connected.map_err(|_| too_slow())??;
        let task = tokio::spawn(async move {
            // Requests report that the connection has ended.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to PostgreSQL has ended");
            }
        });
        let connection = Self { client, task };
        within(connection.client.batch_execute(SETTINGS)).await?;
        Ok(connection)
    }

    /// Ends the session, so that the server frees its lock at once.
    pub async fn close(self) {
        drop(self.client);
        // The server notices by itself, but later.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.task).await;
    }
}

/// A request with a limit of its time.
pub async fn within<T>(
    request: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Failure> {
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, request).await;
    Ok(answer.map_err(|_| too_slow())??)
}

/// Commits, and waits longer than for other requests.
pub async fn commit(client: &Client) -> Result<(), Failure> {
    let commit = client.batch_execute("commit");
    let answer = tokio::time::timeout(COMMIT_TIMEOUT, commit).await;
    let minutes = COMMIT_TIMEOUT.as_secs() / 60;
    let too_slow = format!("the server has not committed within {minutes} minutes");
    Ok(answer.map_err(|_| Failure::Lost(too_slow))??)
}

fn too_slow() -> Failure {
    let seconds = REQUEST_TIMEOUT.as_secs();
    Failure::Lost(format!(
        "the server has not answered within {seconds} seconds"
    ))
}

fn config(def: &PostgresSink, name: &str) -> Result<Config, SinkError> {
    let parsed: Result<Config, _> = def.url.parse();
    // The URL was checked with the configuration.
    let mut config = parsed.map_err(|e| SinkError::Halted(format!("url: {e}")))?;
    let timeout = config.get_connect_timeout().copied();
    let timeout = timeout.filter(|t| !t.is_zero()).unwrap_or(CONNECT_TIMEOUT);
    config
        .connect_timeout(timeout.min(CONNECT_TIMEOUT))
        .keepalives(true)
        .keepalives_idle(KEEPALIVE)
        .keepalives_interval(KEEPALIVE_INTERVAL)
        .keepalives_retries(KEEPALIVE_RETRIES)
        .tcp_user_timeout(REQUEST_TIMEOUT);
    if config.get_application_name().is_none() {
        config.application_name(format!("weir {name}"));
    }
    if let Some(path) = &def.password_file {
        config.password(password(path)?);
    }
    Ok(config)
}

fn password(path: &Path) -> Result<String, SinkError> {
    let failed = |problem: String| {
        SinkError::Halted(format!(
            "password_file {}: {problem}; repair it, then run `weir sinks resume NAME`",
            path.display()
        ))
    };
    let metadata = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?;
    if metadata.len() > MAX_PASSWORD_BYTES {
        return Err(failed(format!("longer than {MAX_PASSWORD_BYTES} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// As libpq has it: `prefer` encrypts and does not ask by whom the certificate is signed. But
/// `require` does.
fn tls(config: &Config, ca_file: Option<&Path>) -> Result<ClientConfig, SinkError> {
    let provider = Arc::new(ring::default_provider());
    let wrong = |e: Error| SinkError::Halted(format!("TLS: {e}"));
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(wrong)?;
    if config.get_ssl_mode() == SslMode::Require {
        let roots = roots(ca_file)?;
        return Ok(client.with_root_certificates(roots).with_no_client_auth());
    }
    Ok(client
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth())
}

/// Certificates that may sign the server's.
fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, SinkError> {
    let of_environment = || std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let of_system = || {
        let mut paths = SYSTEM_CERTIFICATES.iter().map(PathBuf::from);
        paths.find(|path| path.exists())
    };
    let path = ca_file.map(Path::to_owned).or_else(of_environment);
    let Some(path) = path.or_else(of_system) else {
        return Err(SinkError::Halted(
            "the system's certificates were not found; name a file with those that sign the server's by ca_file".into(),
        ));
    };
    let failed = |problem: &str| {
        SinkError::Halted(format!(
            "the certificates in {}: {problem}; repair the file, then run `weir sinks resume NAME`",
            path.display()
        ))
    };
    let certificates = CertificateDer::pem_file_iter(&path).map_err(|e| failed(&e.to_string()))?;
    let certificates: Vec<CertificateDer<'_>> = certificates.filter_map(Result::ok).collect();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(failed("none is valid"));
    }
    Ok(roots)
}

/// Accepts any certificate whose key the server has.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
