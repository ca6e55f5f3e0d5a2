// Command tlog_check verifies an audit log with libraries that know nothing of Tollkeeper: Go's own transparency log
// (golang.org/x/mod/sumdb), and the fsck of Tessera. It exits with 0 only if everything that it was asked for holds,
// and says what does not. It reads no write-ahead segment and no entry's meaning: only the tree and the signatures.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/transparency-dev/formats/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	// Tessera's fsck stops reading when one of its workers finds something, and then its queue may fill up: it waits
	// for ever unless there is a place for every tile.
	workersMax  = 4096
	fsckTimeout = time.Minute
)

func main() {
	directory := flag.String("log", "", "directory of the log")
	keyFile := flag.String("key", "", "file with the verifier key; without it DIR/verifier.pub")
	proofFile := flag.String("proof", "", "proof file to check instead of the log")
	entryFile := flag.String("entry", "", "the entry that the proof is about")
	flag.Parse()
	if err := run(*directory, *keyFile, *proofFile, *entryFile); err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(1)
	}
	fmt.Println("everything holds")
}

func run(directory, keyFile, proofFile, entryFile string) error {
	if keyFile == "" {
		keyFile = filepath.Join(directory, "verifier.pub")
	}
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return err
	}
	verifier, err := note.NewVerifier(strings.TrimSuffix(string(text), "\n"))
	if err != nil {
		return fmt.Errorf("%s: %w", keyFile, err)
	}
	if proofFile != "" {
		return checkProof(proofFile, entryFile, verifier)
	}
	tree, err := checkSumdb(directory, verifier)
	if err != nil {
		return fmt.Errorf("sumdb: %w", err)
	}
	if err := checkFsck(directory, verifier, tree.N); err != nil {
		return fmt.Errorf("fsck: %w", err)
	}
	return nil
}

// parseCheckpoint does what tlog.ParseTree does for its own format, which begins with another line.
func parseCheckpoint(signed []byte, verifier note.Verifier) (tlog.Tree, error) {
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[3] != "" || lines[0] != verifier.Name() {
		return tlog.Tree{}, fmt.Errorf("not the three lines of a checkpoint of %s: %q", verifier.Name(), opened.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return tlog.Tree{}, fmt.Errorf("not a size: %q", lines[1])
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return tlog.Tree{}, err
	}
	return tlog.Tree{N: size, Hash: root}, nil
}

// tiles reads C2SP's files for sumdb, which has the height of a tile in its paths.
type tiles struct{ directory string }

func (r tiles) Height() int                         { return tileHeight }
func (r tiles) SaveTiles(_ []tlog.Tile, _ [][]byte) {}

func (r tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	found := make([][]byte, 0, len(wanted))
	for _, tile := range wanted {
		data, err := r.read(tile.Path(), tile, tile.W*tlog.HashSize)
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

// read falls back to the full tile, as C2SP lets partial ones go when it is there.
func (r tiles) read(path string, tile tlog.Tile, length int) ([]byte, error) {
	name := filepath.Join(r.directory, strings.Replace(path, "tile/8/", "tile/", 1))
	data, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) && tile.W < tileWidth {
		full := tile
		full.W = tileWidth
		data, err = os.ReadFile(filepath.Join(r.directory, strings.Replace(full.Path(), "tile/8/", "tile/", 1)))
		if err == nil && len(data) == tileWidth*tlog.HashSize {
			return data[:length], nil
		}
	}
	if err == nil && len(data) != length {
		return nil, fmt.Errorf("%s: %d bytes instead of %d", name, len(data), length)
	}
	return data, err
}

// checkSumdb proves every entry, and every checkpoint of the history, against the newest checkpoint.
func checkSumdb(directory string, verifier note.Verifier) (tlog.Tree, error) {
	signed, err := os.ReadFile(filepath.Join(directory, "checkpoint"))
	if err != nil {
		return tlog.Tree{}, err
	}
	tree, err := parseCheckpoint(signed, verifier)
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("checkpoint: %w", err)
	}
	hashes := tlog.TileHashReader(tree, tiles{directory})
	for first := int64(0); first < tree.N; first += tileWidth {
		entries, err := readBundle(directory, first/tileWidth, min(tileWidth, int(tree.N-first)))
		if err != nil {
			return tree, err
		}
		for offset, entry := range entries {
			index := first + int64(offset)
			proof, err := tlog.ProveRecord(tree.N, index, hashes)
			if err != nil {
				return tree, fmt.Errorf("entry %d: %w", index, err)
			}
			if err := tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(entry)); err != nil {
				return tree, fmt.Errorf("entry %d: %w", index, err)
			}
		}
	}
	return tree, checkHistory(directory, verifier, tree, hashes)
}

func checkHistory(directory string, verifier note.Verifier, tree tlog.Tree, hashes tlog.HashReader) error {
	history, err := os.ReadFile(filepath.Join(directory, "checkpoints.log"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for number, block := range bytes.Split(history, []byte("\n---\n")) {
		if block = bytes.TrimSuffix(block, []byte("\n")); len(block) == 0 {
			continue
		}
		old, err := parseCheckpoint(append(bytes.Clone(block), '\n'), verifier)
		if err != nil {
			return fmt.Errorf("checkpoints.log block %d: %w", number+1, err)
		}
		if old.N == 0 {
			continue
		}
		proof, err := tlog.ProveTree(tree.N, old.N, hashes)
		if err == nil {
			err = tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash)
		}
		if err != nil {
			return fmt.Errorf("checkpoints.log block %d, size %d: %w", number+1, old.N, err)
		}
	}
	return nil
}

// readBundle parses by hand: sumdb has no bundles.
func readBundle(directory string, number int64, count int) ([][]byte, error) {
	tile := tlog.Tile{H: tileHeight, L: 0, N: number, W: count}
	path := strings.Replace(tile.Path(), "tile/8/0/", "tile/entries/", 1)
	data, err := os.ReadFile(filepath.Join(directory, path))
	if errors.Is(err, os.ErrNotExist) && count < tileWidth {
		tile.W = tileWidth
		data, err = os.ReadFile(filepath.Join(directory, strings.Replace(tile.Path(), "tile/8/0/", "tile/entries/", 1)))
	}
	if err != nil {
		return nil, err
	}
	var entries [][]byte
	for len(data) > 0 {
		if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
			return nil, fmt.Errorf("%s: ends inside an entry", path)
		}
		end := 2 + int(binary.BigEndian.Uint16(data))
		entries, data = append(entries, data[2:end]), data[end:]
	}
	if len(entries) != tile.W {
		return nil, fmt.Errorf("%s: %d entries instead of %d", path, len(entries), tile.W)
	}
	return entries[:count], nil
}

// checkFsck derives every tile from the bundles again. The command of the same name exits with 0 when that fails, so
// the package is called. It indexes a bundle that is too short without looking, hence the recover.
func checkFsck(directory string, verifier note.Verifier, size int64) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), fsckTimeout)
	defer cancel()
	workers := uint(min(size/tileWidth+size/tileWidth/tileWidth+16, workersMax))
	checker := fsck.New(verifier.Name(), verifier, &client.FileFetcher{Root: directory}, bundleHashes, fsck.Opts{N: workers})
	done := make(chan error, 1)
	go func() {
		defer func() {
			if panicked := recover(); panicked != nil {
				done <- fmt.Errorf("panic: %v", panicked)
			}
		}()
		done <- checker.Check(ctx)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.New("no answer in time")
	}
}

func bundleHashes(bundle []byte) ([][]byte, error) {
	var parsed api.EntryBundle
	if err := parsed.UnmarshalText(bundle); err != nil {
		return nil, err
	}
	hashes := make([][]byte, 0, len(parsed.Entries))
	for _, entry := range parsed.Entries {
		hashes = append(hashes, rfc6962.DefaultHasher.HashLeaf(entry))
	}
	return hashes, nil
}

func checkProof(proofFile, entryFile string, verifier note.Verifier) error {
	text, err := os.ReadFile(proofFile)
	if err != nil {
		return err
	}
	entry, err := os.ReadFile(entryFile)
	if err != nil {
		return err
	}
	var parsed proof.TLogProof
	if err := parsed.Unmarshal(text); err != nil {
		return err
	}
	tree, err := parseCheckpoint(parsed.Checkpoint, verifier)
	if err != nil {
		return err
	}
	hashes := make(tlog.RecordProof, 0, len(parsed.Hashes))
	for _, hash := range parsed.Hashes {
		hashes = append(hashes, tlog.Hash(hash))
	}
	// An index that does not fit is one that no tree has.
	if parsed.Index >= uint64(tree.N) {
		return fmt.Errorf("index %d is not below the size, %d", parsed.Index, tree.N)
	}
	return tlog.CheckRecord(hashes, tree.N, tree.Hash, int64(parsed.Index), tlog.RecordHash(entry))
}
