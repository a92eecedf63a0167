// Package keys makes what a broker with users and TLS needs and nobody may share:
// a key for each user of accounts.conf, and the server's certificate.
//
// It is for one machine, and for tests. The certificate is signed by an authority
// whose own key is forgotten at once, so nothing else will ever be: who wants new
// ones removes the directory. A larger installation has its own authority, and
// gives each team its users.
package keys

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nkeys"
)

// Files of the server's directory, and of each user's.
const (
	// Public is what accounts.conf includes: the public key of each user.
	Public            = "keys.conf"
	ServerCertificate = "server.pem"
	ServerKey         = "server.key"
	// CA is in every directory: broker.tls.ca of a client.
	CA = "ca.pem"
	// Seed is broker.credentials of a user.
	Seed = "user.nk"
)

// Server is the directory of the server's own files.
const Server = "server"

// validity of the certificate: longer than anything lives that is made so.
const validity = 10 * 365 * 24 * time.Hour

// Users are those that accounts.conf knows, each with a directory of the name.
func Users() []string {
	return []string{"administrator", "segment-worker", "attributes-worker", "operator", "publisher", "reader"}
}

// Variable is the name of a user's public key in accounts.conf.
func Variable(user string) string {
	return "KEY_" + strings.ToUpper(strings.ReplaceAll(user, "-", "_"))
}

// Config says what Make makes.
type Config struct {
	// Dir is the directory that holds the others.
	Dir string
	// Hosts are the names and addresses under which clients reach the server.
	Hosts []string
	// Owner is the user that files are to belong to; zero: whoever calls.
	Owner int
}

// Make makes everything, or nothing if it was made before.
func Make(c Config) error {
	done := filepath.Join(c.Dir, Server, Public)
	if _, err := os.Stat(done); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	server, err := issue(c.Hosts)
	if err != nil {
		return fmt.Errorf("make a certificate for %v: %w", c.Hosts, err)
	}
	public := []string{"# The users' public keys. Made by a program; their seeds are with the users."}
	for _, user := range Users() {
		seed, key, err := newUser()
		if err != nil {
			return fmt.Errorf("make a key for %s: %w", user, err)
		}
		public = append(public, Variable(user)+": "+key)
		if err := c.write(user, map[string][]byte{Seed: append(seed, '\n'), CA: server.authority}); err != nil {
			return err
		}
	}
	if err := c.write(Server, map[string][]byte{
		CA: server.authority, ServerCertificate: server.certificate, ServerKey: server.key,
	}); err != nil {
		return err
	}
	// Last, because it says that all the others are there.
	return c.write(Server, map[string][]byte{Public: []byte(strings.Join(public, "\n") + "\n")})
}

// write writes files that only the owner may read.
func (c Config) write(folder string, files map[string][]byte) error {
	dir := filepath.Join(c.Dir, folder)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
		if c.Owner == 0 {
			continue
		}
		if err := os.Chown(path, c.Owner, c.Owner); err != nil {
			return err
		}
	}
	if c.Owner == 0 {
		return nil
	}
	return os.Chown(dir, c.Owner, c.Owner)
}

func newUser() (seed []byte, public string, err error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return nil, "", err
	}
	if seed, err = pair.Seed(); err != nil {
		return nil, "", err
	}
	public, err = pair.PublicKey()
	return seed, public, err
}

// issued is a certificate with its key and its authority's, in PEM format.
type issued struct{ authority, certificate, key []byte }

func issue(hosts []string) (issued, error) {
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return issued{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return issued{}, err
	}
	begin := time.Now().Add(-time.Hour) // for clocks that are behind
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "attentive-relay, this broker only"},
		NotBefore: begin, NotAfter: begin.Add(validity),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	certificate := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "nats"}, NotBefore: begin, NotAfter: begin.Add(validity),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			certificate.IPAddresses = append(certificate.IPAddresses, ip)
		} else {
			certificate.DNSNames = append(certificate.DNSNames, host)
		}
	}
	var out issued
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)
	if err != nil {
		return issued{}, err
	}
	out.authority = encode("CERTIFICATE", der)
	if der, err = x509.CreateCertificate(rand.Reader, certificate, authority, key.Public(), authorityKey); err != nil {
		return issued{}, err
	}
	out.certificate = encode("CERTIFICATE", der)
	if der, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return issued{}, err
	}
	out.key = encode("PRIVATE KEY", der)
	return out, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
