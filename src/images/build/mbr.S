// The first sector of probe-guest's disk: reads what the table says into memory and starts Linux
// by its 16-bit boot protocol. Everything else (header fields, command line, addresses) was put
// into the image when it was built, so there is nothing to decide here.
//
// The BIOS reads below 1 MiB only: each piece lands at 0x10000 and is copied up with segments
// whose limit was widened in protected mode ("unreal mode"). The BIOS may narrow it again, so it
// is widened for each piece.

    .section .rodata.stackproof_mbr, "a", @progbits
    .globl stackproof_mbr
    .code16
stackproof_mbr:
    cli
    cld
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    sti
    mov byte ptr [0x7c00 + drive - stackproof_mbr], dl
    mov si, 0x7c00 + table - stackproof_mbr

part:                                   // ebx: sector, ecx: sectors left, edi: destination
    mov ebx, dword ptr [si]
    mov ecx, dword ptr [si + 4]
    mov edi, dword ptr [si + 8]
    add si, 12
    test ecx, ecx
    jz start

piece:
    mov eax, 127                        // the most that one BIOS call reads
    cmp eax, ecx
    jbe 1f
    mov eax, ecx
1:  mov word ptr [0x7c00 + packet + 2 - stackproof_mbr], ax
    mov dword ptr [0x7c00 + packet + 8 - stackproof_mbr], ebx
    pushad
    mov si, 0x7c00 + packet - stackproof_mbr
    mov ah, 0x42
    mov dl, byte ptr [0x7c00 + drive - stackproof_mbr]
    int 0x13
    jc failed
    popad

    push ecx
    push esi
    cli
    lgdt [0x7c00 + gdtr - stackproof_mbr]
    mov edx, cr0
    or dl, 1
    mov cr0, edx
    jmp 2f
2:  mov bp, 8
    mov ds, bp
    mov es, bp
    and dl, 0xfe
    mov cr0, edx
    jmp 3f
3:  xor bp, bp
    mov ds, bp
    mov es, bp
    sti
    mov esi, 0x10000
    mov ecx, eax
    shl ecx, 7                          // 128 double words a sector
    .byte 0xf3, 0x67, 0x66, 0xa5        // rep movsd by esi and edi
    pop esi
    pop ecx
    add ebx, eax
    sub ecx, eax
    jnz piece
    jmp part

start:
    cli
    mov ax, 0x9000
    mov ds, ax
    mov es, ax
    mov fs, ax
    mov gs, ax
    mov ss, ax
    mov sp, 0xe000
    .byte 0xea, 0x00, 0x00, 0x20, 0x90  // far jump to 0x9020:0, Linux's setup code

failed:                                 // said on the first serial port, where someone reads
    mov si, 0x7c00 + message - stackproof_mbr
    mov dx, 0x3f8
4:  lodsb
    test al, al
    jz 5f
    out dx, al
    jmp 4b
5:  hlt
    jmp 5b

message:
    .asciz "probe-guest: the disk cannot be read\r\n"
drive:
    .byte 0
    .balign 4
packet:
    .byte 16, 0
    .word 0
    .word 0, 0x1000                     // offset and segment of the buffer
    .long 0, 0
    .balign 8
gdt:
    .quad 0
    .byte 0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0
gdtr:
    .word 15
    .long 0x7c00 + gdt - stackproof_mbr

    .org stackproof_mbr + 380
table:                                  // filled by the builder; ends with a part of no sectors
    .fill 60, 1, 0
    .org stackproof_mbr + 440
    .globl stackproof_mbr_end
stackproof_mbr_end:
    .code64
    .previous
