package sandbox_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"attentive.internal/pkg/loopback/loopbacktest"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/ingest"
	"attentive.internal/pkg/sandbox/sandboxtest"
	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// dataEnv makes this test program a sandbox over that directory: a process of
// its own that a test can kill.
const dataEnv = "SANDBOX_TEST_DATA"

func TestMain(m *testing.M) {
	if data := os.Getenv(dataEnv); data != "" {
		if err := serve(data); err != nil {
			fmt.Fprintln(os.Stderr, "sandbox:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// addresses is what the process prints when it can be called.
type addresses struct{ API, SFTP, Control, HostKey, PublicKey string }

func serve(data string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	s, err := sandbox.New(sandbox.Config{
		Data: data, Username: sandboxtest.Username, Passphrase: sandboxtest.Passphrase,
		Keys:        []sandbox.APIKey{{Token: sandboxtest.Token, Scopes: []string{api.ScopeAttributes, api.ScopeSubscriptions}}},
		SignUpUnits: []sandbox.SignUpUnit{{ID: sandboxtest.SignUpUnit}},
		Limits:      map[api.Endpoint]int{api.SetAttributes: 1e6, api.Subscribe: 1e6},
	})
	if err != nil {
		return err
	}
	if err := s.Listen(ctx); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(addresses{s.APIURL(), s.SFTPAddr(), s.ControlURL(), s.HostKey(), s.PublicKey()}); err != nil {
		return err
	}
	return s.Run(ctx)
}

// spawn starts a sandbox process and returns it with its addresses.
func spawn(t *testing.T, data string) (*exec.Cmd, addresses) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), dataEnv+"="+data)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	var a addresses
	if err = errors.Join(err, json.Unmarshal(line, &a)); err != nil {
		t.Fatal(err)
	}
	return cmd, a
}

// session logs in to an SFTP server until the test ends.
func session(t *testing.T, addr, hostKey string) *sftp.Client {
	t.Helper()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(hostKey))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := ssh.Dial("tcp", addr, &ssh.ClientConfig{
		User: sandboxtest.Username, Auth: []ssh.AuthMethod{ssh.Password(sandboxtest.Passphrase)},
		HostKeyCallback: ssh.FixedHostKey(key), Timeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := sftp.NewClient(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		conn.Close()
	})
	return c
}

// publish uploads a file as a sender does: a temporary name, then the final one.
func publish(t *testing.T, c *sftp.Client, name string, text []byte) {
	t.Helper()
	temporary := "/uploads/.tmp-" + name
	f, err := c.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.ReadFromWithConcurrency(bytes.NewReader(text), 16)
	if err = errors.Join(err, f.Close(), c.Rename(temporary, "/uploads/"+name)); err != nil {
		t.Fatal(err)
	}
}

// encrypt encrypts text to an armored key.
func encrypt(t *testing.T, key string, text []byte) []byte {
	t.Helper()
	to, err := openpgp.ReadArmoredKeyRing(strings.NewReader(key))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w, err := openpgp.Encrypt(&out, to, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestUploadBecomesASegment(t *testing.T) {
	t.Parallel()
	s := sandboxtest.Start(t, sandbox.Config{})
	if status, text := send(t, http.MethodPost, s.APIURL()+"/v1/subscriptions",
		`{"user":{"phone":"+13115552368","email":"a@b.co"},"signUpSourceId":"100001","singleOptIn":true}`); status != 202 {
		t.Fatalf("subscribe = %d %s", status, text)
	}
	c := session(t, s.SFTPAddr(), s.HostKey())
	name := "acme_subscriber_segment_20261123_1.csv.pgp"
	publish(t, c, name, encrypt(t, s.PublicKey(), []byte("+13115552368,Winback\n+13115550000,Winback\n+13115550000,Winback\n")))
	publish(t, c, "notes.txt", []byte("x"))
	if err := s.Files().Settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []ingest.Segment{{Name: "Winback", Count: 2, Active: 1, Rows: 3, Published: 1, Files: []string{name}}}
	ignored := cmpopts.IgnoreTypes(time.Time{})
	if diff := cmp.Diff(want, s.Segments(), ignored); diff != "" {
		t.Errorf("segments (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, view[[]ingest.Segment](t, s, "segments"), ignored); diff != "" {
		t.Errorf("view of segments (-want +got):\n%s", diff)
	}
	files := view[[]ingest.File](t, s, "files")
	if len(files) != 2 || !files[0].Encrypted || files[0].Head[0] != "+13115552368,Winback" || files[1].Error == "" {
		t.Errorf("view of files: %+v", files)
	}
	if status, text := send(t, http.MethodGet, s.ControlURL()+"/_sandbox/sftp", ""); status != 200 || !strings.Contains(text, `"renames": 2`) || !strings.Contains(text, "BEGIN PGP PUBLIC KEY") {
		t.Errorf("view of sftp = %d %s", status, text)
	}
}

func TestFilesMisbehaveOverHTTP(t *testing.T) {
	t.Parallel()
	s := sandboxtest.Start(t, sandbox.Config{})
	put := func(path, body string) {
		t.Helper()
		if status, text := send(t, http.MethodPut, s.ControlURL()+"/_sandbox/"+path, body); status != 200 {
			t.Fatalf("PUT %s %s = %d %s", path, body, status, text)
		}
	}
	c := session(t, s.SFTPAddr(), s.HostKey())
	put("sftp", `{"refuse_rename":true,"full_after":10}`)
	if m := s.SFTP().Misbehaviour(); !m.RefuseRename || *m.FullAfter != 10 {
		t.Errorf("misbehaviour %+v", m)
	}
	put("sftp", `{}`)
	put("ingest", `{"take_away":true}`)
	publish(t, c, "acme_subscriber_segment_20261123.csv", []byte("+13115550000,A\n"))
	if infos, err := c.ReadDir("/uploads"); err != nil || len(infos) != 0 {
		t.Errorf("%d files left in the folder, %v, want all taken away", len(infos), err)
	}
	if err := s.Files().Settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.Segments(); len(got) != 1 || got[0].Count != 1 {
		t.Errorf("segments %+v, want one with one member", got)
	}
	put("ingest", `{"take_away":false}`)
	if status, _ := send(t, http.MethodPut, s.ControlURL()+"/_sandbox/sftp", `{"refuse":true}`); status != 400 {
		t.Errorf("an unknown knob = %d, want 400", status)
	}
}

// TestKilledProcessForgetsNothing kills a sandbox with SIGKILL in the middle of
// calls and uploads: what it has answered is there after the next start, once.
func TestKilledProcessForgetsNothing(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	process, at := spawn(t, data)
	c := session(t, at.SFTP, at.HostKey)
	for i := range 5 {
		publish(t, c, fmt.Sprintf("acme_subscriber_segment_20261123_%d.csv", i+1), fmt.Appendf(nil, "+1311555000%d,S%d\n", i, i))
	}
	answered := make(chan int)
	go func() { // ends when the connection does
		defer close(answered)
		for i := 0; ; i++ {
			body := fmt.Sprintf(`{"user":{"phone":"+1311555%04d"},"signUpSourceId":"100001"}`, i)
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at.API+"/v1/subscriptions", strings.NewReader(body))
			if err != nil {
				return
			}
			r.Header.Set("Authorization", "Bearer "+sandboxtest.Token)
			r.Header.Set("Content-Type", "application/json")
			response, err := http.DefaultClient.Do(r)
			if err != nil {
				return
			}
			_, err = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			if err != nil || response.StatusCode != http.StatusAccepted {
				return
			}
			answered <- i
		}
	}()
	last := -1
	for i := range answered {
		last = i
		if i == 200 {
			if err := process.Process.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	if last < 200 {
		t.Fatalf("calls ended after %d, before the kill", last)
	}

	_ = process.Wait()
	s := sandboxtest.Start(t, sandbox.Config{Data: data})
	if s.HostKey() != at.HostKey || s.PublicKey() != at.PublicKey {
		t.Error("the next process has other keys")
	}
	if err := s.Files().Settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	segments := s.Segments()
	for _, segment := range segments {
		if len(segments) != 5 || segment.Count != 1 || segment.Published != 1 {
			t.Errorf("segments %+v, want five, each published once", segments)
		}
	}
	for i := range last + 1 {
		phone := fmt.Sprintf("+1311555%04d", i)
		p, ok := s.API().Subscriber(phone)
		if !ok || p.Status(phone, api.Marketing) != api.Pending || p.Texts[api.ReplyY] != 1 {
			t.Fatalf("call %d of %d was answered; after the restart: %+v", i, last, p)
		}
	}
}

func TestTemporaryDirectoryIsRemoved(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	s, err := sandbox.New(sandbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context()); err == nil {
		t.Error("a second Listen succeeded")
	}
	made, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "*"))
	if err != nil || len(made) != 1 {
		t.Fatalf("temporary directories %q, %v, want one", made, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Errorf("Run = %v", err)
	}
	if _, err := os.Stat(made[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary directory is left: %v", err)
	}
}

func TestListenReleasesWhatItTook(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := sandbox.Config{Data: t.TempDir(), APIAddr: loopbacktest.Reserve(t).Address(), ControlAddr: taken.Addr().String()}
	s, err := sandbox.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), taken.Addr().String()) {
		t.Errorf("Run on a taken address = %v, want an error naming it", err)
	}
	cfg.ControlAddr = ""
	if got := sandboxtest.Start(t, cfg).APIURL(); got != "http://"+cfg.APIAddr {
		t.Errorf("API at %s, want the address asked for", got)
	}
}
