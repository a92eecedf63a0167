package source

import (
	"crypto/tls"
	"crypto/x509"
	"time"
)

// SetPatience shortens how long one answer of the object store may take, and how
// long a store or server may send nothing.
func (o *Opener) SetPatience(answer, silence time.Duration) {
	o.patience = patience{answer: answer, silence: silence}
}

// Trust makes the certificate of a test's server known.
func (o *Opener) Trust(c *x509.Certificate) {
	pool := x509.NewCertPool()
	pool.AddCert(c)
	o.transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}
