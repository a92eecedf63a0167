package sftptest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"attentive.internal/pkg/loopback/loopbacktest"
	"attentive.internal/pkg/peer"
)

// ProFTPD is the SFTP server of another make, for the user who runs the test.
type ProFTPD struct {
	// Host and Port are where it listens.
	Host string
	Port int
	// User and Password log in.
	User, Password string
	// HostKeys are its keys as authorized-key lines.
	HostKeys []string
	// Folder is an empty directory; clients know it by the same path.
	Folder string
}

// StartProFTPD starts a ProFTPD with mod_sftp, and with more lines of
// configuration, that ends with the test. The test is skipped, or fails, when none
// is installed: see package peer.
func StartProFTPD(t testing.TB, more ...string) *ProFTPD {
	t.Helper()
	program := peer.Need(t, "proftpd")
	dir := t.TempDir()
	host := newKey(t)
	write(t, filepath.Join(dir, "hostkey"), host.private)
	s := &ProFTPD{
		Host: "127.0.0.1", User: "acme", Password: "open sesame",
		HostKeys: []string{strings.TrimSpace(host.public)}, Folder: filepath.Join(dir, "uploads"),
	}
	if err := os.Mkdir(s.Folder, 0o700); err != nil {
		t.Fatal(err)
	}
	hash, err := exec.CommandContext(t.Context(), peer.Need(t, "openssl"), "passwd", "-6", s.Password).Output()
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "users"), fmt.Sprintf("%s:%s:%d:%d::%s:/bin/sh\n", s.User, strings.TrimSpace(string(hash)), os.Getuid(), os.Getgid(), dir))
	problem := errors.New("no port was tried")
	for range 5 { // as StartOpenSSH
		s.Port = loopbacktest.Reserve(t).Number
		config := filepath.Join(dir, "proftpd.conf")
		write(t, config, s.config(dir, more))
		address := s.Host + ":" + strconv.Itoa(s.Port)
		if problem = run(t, address, program, "-n", "-q", "-c", config); problem == nil {
			return s
		}
	}
	t.Fatal(problem)
	return nil
}

// config writes the server's configuration.
func (s *ProFTPD) config(dir string, more []string) string {
	return strings.Join(append([]string{
		"LoadModule mod_sftp.c",
		"ServerType standalone",
		"ServerName test",
		"DefaultAddress " + s.Host,
		"Port " + strconv.Itoa(s.Port),
		"UseIPv6 off",
		"UseReverseDNS off",
		"User root",
		"Group root",
		"RootLogin on",
		"RequireValidShell off",
		"WtmpLog off",
		"PidFile " + filepath.Join(dir, "pid"),
		"ScoreboardFile " + filepath.Join(dir, "scoreboard"),
		"AuthOrder mod_auth_file.c",
		"AuthUserFile " + filepath.Join(dir, "users"),
		"<IfModule mod_delay.c>", "DelayEngine off", "</IfModule>",
		"SFTPEngine on",
		"SFTPHostKey " + filepath.Join(dir, "hostkey"),
		"SFTPAuthMethods password",
		"AllowOverwrite on",
	}, more...), "\n") + "\n"
}
